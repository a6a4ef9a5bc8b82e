"""The data set of captioned images and clips: resized, and encoded once with a cache or each time."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orthotune.errors import DataError
from orthotune.image.control.conditions.kind import Condition
from orthotune.image.control.data import hint_of
from orthotune.image.data.batch import Batch, Conditions
from orthotune.image.data.buckets import Crop, Fit, Size, fit, fitted, nearest_size, need_multiple, sizes
from orthotune.image.data.caption_tags import UNCHANGED, Tags
from orthotune.image.data.captions import Example, dropping
from orthotune.image.data.encoded_store import EncodedStore, caption_model, digest, image_model
from orthotune.image.data.image_folder import ClipFile, ImageFile, Say, in_memory_image
from orthotune.image.data.masks import MaskSource, check_masks, mask_of
from orthotune.image.families.family import Family
from orthotune.runs.progress import StepBar

#: Largest factor by which an image is enlarged without a warning.
ENLARGED = 1.0


class ImageDataset:
    """Captioned images or clips in batches, a :class:`orthotune.image.loop.order.Dataset`.

    A clip gives as many frames as are trained on, one after the other, resized and cropped alike: with a cache its
    first ones, otherwise from a start that depends on the seed and the index. Images and clips share no batch.

    A batch depends only on its indices and the seed. An index beyond the number of images counts modulo that number,
    with other random crops, autoencoder noise and dropped captions, so that ``index + epoch * len(data)`` varies an
    image from epoch to epoch. Cached images are encoded once: their crops and noise do not vary.

    Args:
        examples: images with captions and optional control images.
        family: encodes them.
        resolution: side of square images in pixels, or of the square with the area of the buckets; default: the native
            size of the family.
        buckets: keep aspect ratios, see :func:`orthotune.image.data.buckets.sizes`; False makes all images square.
        crop: where an image is cropped: ``centre`` or ``random``.
        cache: encode each image and each caption once.
        cache_dir: also store the encodings in files for further runs; after a change of file, size, crop, seed or model
            an image is encoded again.
        encode_captions: False if a text encoder is trained; batches then have no ``conditions``.
        caption_dropout: share of captions that are replaced by the empty caption, for guidance.
        condition: kind of the control images; batches then have ``hints``.
        weight: of each image in the loss.
        weights: of single images, instead of ``weight``.
        masks: where the masks of the loss are, see :mod:`orthotune.image.data.masks`; batches then have ``mask``.
        unmasked: how much pixels outside of a mask count, 0..1.
        tags: how captions vary from epoch to epoch.
        seed: of crops, autoencoder noise, caption dropout and the order of tags.
        enlarged: images that are enlarged by more than this factor are named in a warning.
        say: gets the warning.

    Raises:
        ConfigError: the resolution is not possible for the model.
        DataError: there are no examples, or none of them has a mask where masks are asked for.

    Example:
        >>> data = ImageDataset(read_examples("birds/"), family, 512, buckets=True)  # doctest: +SKIP
        >>> data.batch([0, 5]).latents.shape  # doctest: +SKIP
        torch.Size([2, 4, 64, 64])
    """

    #: indices include the epoch, see :class:`orthotune.image.loop.order.Dataset`
    epoch_in_index = True

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
        weights: Sequence[float] | None = None,
        masks: MaskSource = "none",
        unmasked: float = 0.0,
        tags: Tags = UNCHANGED,
        seed: int = 0,
        enlarged: float = ENLARGED,
        say: Say = print,
    ) -> None:
        if not examples:
            raise DataError("images", got="none", needed="at least one")
        self.examples, self.family, self.condition = list(examples), family, condition
        self.crop, self.cache, self.seed = crop, cache, seed
        self.encode_captions, self._empties = encode_captions, caption_dropout > 0
        self._cache_dir = Path(cache_dir) if cache and cache_dir else None
        side = resolution or family.native_size
        need_multiple("resolution", side, family.divisor)
        known: list[Size] = sizes(side, family.divisor) if buckets else [(side, side)]
        self._buckets = [nearest_size(one.image.height, one.image.width, known) for one in self.examples]
        self.weights = list(weights) if weights is not None else [float(weight)] * len(self.examples)
        check_masks([one.image for one in self.examples], masks)
        self.masks, self.unmasked, self.tags = masks, unmasked, tags
        self._dropped = dropping(caption_dropout, seed)
        self._latents: dict[int, Tensor] = {}
        self._hints: dict[int, ImageFile] = {}
        self._masks: dict[int, ImageFile | None] = {}
        self._words: dict[str, Conditions] = {}
        self._stores: dict[str, EncodedStore] = {}
        self._warn(enlarged, say)

    def __len__(self) -> int:
        return len(self.examples)

    def bucket(self, index: int) -> tuple[int, ...]:
        """Height and width of an image after resizing and cropping, in pixels; of a clip its frames, too."""
        number = index % len(self)
        frames = self.examples[number].image.frames
        return (*self._buckets[number], *((frames,) if frames > 1 else ()))

    def layout(self) -> dict[Size, int]:
        """Size -> number of images, portrait sizes first."""
        return dict(sorted(Counter(self._buckets).items(), key=lambda item: item[0][1] / item[0][0]))

    def prepare(self, bar: bool = False) -> None:
        """Encode all images and captions now if there is a cache; otherwise each is encoded when it is first used."""
        if not self.cache:
            return
        progress = StepBar("encoding", bar)
        progress.start(len(self), 0)
        try:
            if self._empties:
                self._caption("")
            for number, example in enumerate(self.examples):
                self._encoded(number)
                if not self.tags.vary:
                    self._caption(example.caption)
                progress.show(number + 1, {})
        finally:
            progress.close()

    def batch(self, indices: list[int]) -> Batch:
        """The images with these indices, all of one bucket.

        Raises:
            DataError: a file has changed or was removed since the data set was made.
        """
        seen = [self._encoded(index) for index in indices]
        captions = [self._worded(index) for index in indices]
        hints = [hint for _, hint, _ in seen if hint is not None]
        return Batch(
            latents=torch.stack([latents for latents, _, _ in seen]),
            captions=captions,
            conditions=self._conditions(captions, indices, [how for _, _, how in seen])
            if self.encode_captions
            else None,
            weight=torch.tensor([self.weights[index % len(self)] for index in indices]),
            hints=torch.stack(hints) if hints else None,
            mask=self._mask_of(indices, [how for _, _, how in seen]),
        )

    def _worded(self, index: int) -> str:
        """The caption of an image in an epoch."""
        caption = self.tags.shuffled(self.examples[index % len(self)].caption, self.seed, index)
        return self._dropped(caption, index)

    def _mask_of(self, indices: list[int], fits: list[Fit]) -> Tensor | None:
        if self.masks == "none":
            return None
        rows = [self._mask(index % len(self), how) for index, how in zip(indices, fits, strict=True)]
        return self.unmasked + (1 - self.unmasked) * torch.stack(rows)

    def _mask(self, number: int, how: Fit) -> Tensor:
        """The mask of one image, resized and cropped as the image, float32 ``[1, height, width]``."""
        if number not in self._masks:
            image = self.examples[number].image
            found = mask_of(image, self.masks)
            self._masks[number] = None if found is None else in_memory_image(found, image.name)
        kept = self._masks[number]
        if kept is None:
            return torch.ones(1, *how.size)
        return torch.from_numpy(fitted(kept.pixels(), how)[..., 0].copy())[None].float() / 255

    def _conditions(self, captions: list[str], indices: list[int], fits: list[Fit]) -> Conditions:
        if self.cache and not self.tags.vary:
            rows = [self._caption(caption) for caption in captions]
            encoded = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        else:
            with torch.no_grad():
                encoded = self.family.encode_captions(captions)
        return encoded | self._sizes(indices, fits)

    def _sizes(self, indices: list[int], fits: list[Fit]) -> Conditions:
        """What the family reads of the sizes of images."""
        images = [self.examples[index % len(self)].image for index in indices]
        original = torch.tensor([[image.height, image.width] for image in images])
        corner = torch.tensor([[how.top, how.left] for how in fits])
        return self.family.size_conditions(original, corner, fits[0].size)

    def _encoded(self, index: int) -> tuple[Tensor, Tensor | None, Fit]:
        """Latents, control image and crop; if cached, the same in all epochs."""
        number = index % len(self)
        varied = number if self.cache else index
        example = self.examples[number]
        rng = random.Random(f"{self.seed} crop {varied}")
        how = fit(example.image.height, example.image.width, self._buckets[number], self.crop, rng)
        pixels: Any = None
        latents = self._latents.get(number)
        if latents is None:
            content, window = example.image.content(), self._window(example.image, index)
            key = digest(content, how.resized, how.size, (how.top, how.left), self.seed, *window)
            store = self._store("latents")
            kept = store.get(key) if store else None
            if kept is None:
                pixels = _part(example.image, content, how, *window[:1])
                # Encoded one by one, each with its own noise, so that latents do not depend on other images.
                generator = torch.Generator().manual_seed(int(digest(key, None if self.cache else index)[:15], 16))
                shown = torch.from_numpy(pixels).movedim(-1, 0)[None]
                kept = {"latents": self.family.encode_images(shown, generator)[0].float().cpu()}
                if store:
                    store.put(key, kept)
            latents = kept["latents"]
            if self.cache:
                self._latents[number] = latents
        return latents, self._hint(number, example, how, pixels), how

    def _window(self, image: ImageFile, index: int) -> tuple[int, ...]:
        """The first frame of a clip and their number; empty for an image."""
        if not isinstance(image, ClipFile):
            return ()
        rng = random.Random(f"{self.seed} window {index}")
        return (0 if self.cache else rng.randint(0, image.length - image.frames), image.frames)

    def _hint(self, number: int, example: Example, how: Fit, pixels: Any) -> Tensor | None:
        if self.condition is None:
            return None
        if number in self._hints:
            hint = self._hints[number].pixels()
        else:
            if pixels is None and example.condition is None:
                pixels = _part(example.image, example.image.content(), how)
            hint = hint_of(example, self.condition, how, pixels)
            if self.cache:  # as PNG in memory: maps and edges compress well
                self._hints[number] = in_memory_image(hint, example.image.name)
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
            model = image_model(self.family) if kind == "latents" else caption_model(self.family)
            self._stores[kind] = EncodedStore(self._cache_dir / kind, model)
        return self._stores[kind]

    def _warn(self, enlarged: float, say: Say) -> None:
        scales = [
            (fit(one.image.height, one.image.width, size).scale, one.image.name)
            for one, size in zip(self.examples, self._buckets, strict=True)
        ]
        large = sorted((scale, name) for scale, name in scales if scale > enlarged)[::-1]
        if large:
            named = ", ".join(f"{name} ({scale:.1f} times)" for scale, name in large[:5])
            more = f" and {len(large) - 5} more" if len(large) > 5 else ""
            say(f"{len(large)} of {len(self)} images are smaller than the training size and enlarged: {named}{more}.")


def _part(image: ImageFile, content: bytes, how: Fit, start: int = 0) -> Any:
    """The resized and cropped image, ``(height, width, 3)`` uint8, or clip, ``(frames, height, width, 3)``."""
    if isinstance(image, ClipFile):
        pixels = image.window(start)
    else:
        pixels = ImageFile(image.name, content, image.height, image.width).pixels()
    height, width = pixels.shape[-3:-1]
    if (height, width) != (image.height, image.width):
        raise DataError(
            f"image {image.name}", got=f"{width} x {height} pixels",
            needed=f"{image.width} x {image.height}, as when the run began",
        )  # fmt: skip
    if not isinstance(image, ClipFile):
        return fitted(pixels, how)
    return np.stack([fitted(frame, how) for frame in pixels])
