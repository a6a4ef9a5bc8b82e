"""Pictures as the denoiser reads them: brought to size, encoded once and kept, or anew each time."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orthotune.errors import DataError
from orthotune.image.control.conditions.kind import Condition
from orthotune.image.control.data import hint_of
from orthotune.image.data.batch import Batch, Conditions
from orthotune.image.data.buckets import Crop, Fit, Size, fit, fitted, nearest_size, need_multiple, sizes
from orthotune.image.data.captions import Example, dropping
from orthotune.image.data.encoded_store import EncodedStore, caption_model, digest, picture_model
from orthotune.image.data.image_folder import Picture, Say, picture_of
from orthotune.image.families.family import Family
from orthotune.runs.progress import StepBar

#: How much an image may be enlarged without a warning.
ENLARGED = 1.0


class PictureData:
    """Captioned images as batches; what :class:`orthotune.image.loop.order.Dataset` asks for.

    A batch is a function of its indices and the seed alone. An index beyond the last image begins anew with the
    first, with other random crops, noise of the autoencoder and dropped captions: ``index + epoch * len(data)`` sees
    each image in a new way each time. What is cached is encoded once, so there crops and noise stay the same.

    Args:
        examples: images, captions, and control images where there are some.
        family: what encodes them.
        resolution: side in pixels of the square, or whose area the buckets have; default: the family's native size.
        buckets: keep aspect ratios, see :func:`orthotune.image.data.buckets.sizes`; False makes all square.
        crop: where an image that does not fit is cut: ``centre`` or ``random``.
        cache: encode each image and each caption once.
        cache_dir: keep them in files there, too, for further runs; a changed file, size, crop, seed or model is
            encoded anew.
        encode_captions: False where a text encoder is trained: then batches have no ``conditions``.
        caption_dropout: share of captions that are emptied, for guidance.
        condition: the kind of the control images; batches then have ``hints``.
        weight: of each image in the loss.
        seed: decides crops, the autoencoder's noise, and which captions are emptied.
        enlarged: images that have to be enlarged by more than this factor are named in a warning.
        say: told of them.

    Raises:
        ConfigError: a resolution that the model cannot take.
        DataError: no examples.

    Example:
        >>> data = PictureData(read_examples("birds/"), family, 512, buckets=True)  # doctest: +SKIP
        >>> data.batch([0, 5]).latents.shape  # doctest: +SKIP
        torch.Size([2, 4, 64, 64])
    """

    #: asks for ``index + epoch * len(data)``, see :class:`orthotune.image.loop.order.Dataset`
    turns = True

    def __init__(
        self,
        examples: Sequence[Example],
        family: Family,
        resolution: int | None = None,
        *,
        buckets: bool = False,
        crop: Crop = "centre",
        cache: bool = True,
        cache_dir: Path | None = None,
        encode_captions: bool = True,
        caption_dropout: float = 0.0,
        condition: Condition | None = None,
        weight: float = 1.0,
        seed: int = 0,
        enlarged: float = ENLARGED,
        say: Say = print,
    ) -> None:
        if not examples:
            raise DataError("pictures", got="none", needed="at least one")
        self.examples, self.family, self.condition = list(examples), family, condition
        self.crop, self.cache, self.weight, self.seed = crop, cache, weight, seed
        self.encode_captions, self._empties = encode_captions, caption_dropout > 0
        self._cache_dir = Path(cache_dir) if cache and cache_dir else None
        side = resolution or family.native_size
        need_multiple("resolution", side, family.divisor)
        known: list[Size] = sizes(side, family.divisor) if buckets else [(side, side)]
        self._buckets = [nearest_size(one.picture.height, one.picture.width, known) for one in self.examples]
        self._dropped = dropping(caption_dropout, seed)
        self._latents: dict[int, Tensor] = {}
        self._hints: dict[int, Picture] = {}
        self._words: dict[str, Conditions] = {}
        self._stores: dict[str, EncodedStore] = {}
        self._warn(enlarged, say)

    def __len__(self) -> int:
        return len(self.examples)

    def bucket(self, index: int) -> Size:
        """Height and width in pixels of what is trained on of an image."""
        return self._buckets[index % len(self)]

    def layout(self) -> dict[Size, int]:
        """How many images each bucket has, upright ones first."""
        return dict(sorted(Counter(self._buckets).items(), key=lambda item: item[0][1] / item[0][0]))

    def prepare(self, bar: bool = False) -> None:
        """Encode everything now, if it is cached; without this, each image is encoded when it is first needed."""
        if not self.cache:
            return
        progress = StepBar("encoding", bar)
        progress.start(len(self), 0)
        try:
            if self._empties:
                self._caption("")
            for number, example in enumerate(self.examples):
                self._picture(number)
                self._caption(example.caption)
                progress.show(number + 1, {})
        finally:
            progress.close()

    def batch(self, indices: list[int]) -> Batch:
        """The images with these numbers, all of one bucket.

        Raises:
            DataError: a file that changed or vanished since it was found.
        """
        seen = [self._picture(index) for index in indices]
        captions = [self._dropped(self.examples[index % len(self)].caption, index) for index in indices]
        hints = [hint for _, hint, _ in seen if hint is not None]
        return Batch(
            latents=torch.stack([latents for latents, _, _ in seen]),
            captions=captions,
            conditions=self._conditions(captions, indices, [how for _, _, how in seen])
            if self.encode_captions
            else None,
            weight=torch.full((len(indices),), float(self.weight)),
            hints=torch.stack(hints) if hints else None,
        )

    def _conditions(self, captions: list[str], indices: list[int], fits: list[Fit]) -> Conditions:
        if self.cache:
            rows = [self._caption(caption) for caption in captions]
            told = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        else:
            with torch.no_grad():
                told = self.family.encode_captions(captions)
        pictures = [self.examples[index % len(self)].picture for index in indices]
        original = torch.tensor([[picture.height, picture.width] for picture in pictures])
        corner = torch.tensor([[how.top, how.left] for how in fits])
        return told | self.family.picture_conditions(original, corner, fits[0].size)

    def _picture(self, index: int) -> tuple[Tensor, Tensor | None, Fit]:
        """Latents, control image and crop; a cached one is the same whichever turn ``index`` belongs to."""
        number = index % len(self)
        turn = number if self.cache else index
        example = self.examples[number]
        chance = random.Random(f"{self.seed} crop {turn}")
        how = fit(example.picture.height, example.picture.width, self._buckets[number], self.crop, chance)
        pixels: Any = None
        latents = self._latents.get(number)
        if latents is None:
            content = example.picture.content()
            key = digest(content, how.resized, how.size, (how.top, how.left), self.seed)
            store = self._store("latents")
            kept = store.get(key) if store else None
            if kept is None:
                pixels = _part(example.picture, content, how)
                # Alone, and from a noise of its own: what an image's latents are depends on no other image.
                draw = torch.Generator().manual_seed(int(digest(key, None if self.cache else index)[:15], 16))
                shown = torch.from_numpy(pixels).permute(2, 0, 1)[None]
                kept = {"latents": self.family.encode_pictures(shown, draw)[0].float().cpu()}
                if store:
                    store.put(key, kept)
            latents = kept["latents"]
            if self.cache:
                self._latents[number] = latents
        return latents, self._hint(number, example, how, pixels), how

    def _hint(self, number: int, example: Example, how: Fit, pixels: Any) -> Tensor | None:
        if self.condition is None:
            return None
        if number in self._hints:
            hint = self._hints[number].pixels()
        else:
            if pixels is None and example.condition is None:
                pixels = _part(example.picture, example.picture.content(), how)
            hint = hint_of(example, self.condition, how, pixels)
            if self.cache:  # as a file in memory: maps and edges shrink to a small part of their pixels
                self._hints[number] = picture_of(hint, example.picture.name)
        return torch.from_numpy(hint).permute(2, 0, 1).float() / 255

    def _caption(self, caption: str) -> Conditions:
        """The conditions of one caption, without the dimension of the batch."""
        if not self.encode_captions:
            return {}
        if caption not in self._words:
            store = self._store("captions")
            kept = store.get(caption) if store else None
            if kept is None:
                with torch.no_grad():
                    encoded = self.family.encode_captions([caption])
                kept = {name: tensor[0].cpu() for name, tensor in encoded.items()}
                if store:
                    store.put(caption, kept)
            self._words[caption] = kept
        return self._words[caption]

    def _store(self, kind: str) -> EncodedStore | None:
        if self._cache_dir is None:
            return None
        if kind not in self._stores:
            model = picture_model(self.family) if kind == "latents" else caption_model(self.family)
            self._stores[kind] = EncodedStore(self._cache_dir / kind, model)
        return self._stores[kind]

    def _warn(self, enlarged: float, say: Say) -> None:
        scales = [
            (fit(one.picture.height, one.picture.width, size).scale, one.picture.name)
            for one, size in zip(self.examples, self._buckets, strict=True)
        ]
        large = sorted((scale, name) for scale, name in scales if scale > enlarged)[::-1]
        if large:
            named = ", ".join(f"{name} ({scale:.1f} times)" for scale, name in large[:5])
            more = f" and {len(large) - 5} more" if len(large) > 5 else ""
            say(
                f"{len(large)} of {len(self)} pictures are smaller than what is trained on and enlarged: {named}{more}."
            )


def _part(picture: Picture, content: bytes, how: Fit) -> Any:
    pixels = Picture(picture.name, content, picture.height, picture.width).pixels()
    if pixels.shape[:2] != (picture.height, picture.width):
        raise DataError(
            f"picture {picture.name}", got=f"{pixels.shape[1]} x {pixels.shape[0]} pixels",
            needed=f"{picture.width} x {picture.height}, as when the run began",
        )  # fmt: skip
    return fitted(pixels, how)
