"""The data set of images to edit: references or masks, encoded beside each image."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from orthotune.errors import DataError
from orthotune.image.data.batch import Conditions, Sources
from orthotune.image.data.buckets import Fit, Size, fit, fitted
from orthotune.image.data.cache import ImageDataset
from orthotune.image.data.encoded_store import digest
from orthotune.image.data.image_folder import ImageFile
from orthotune.image.editing.examples import EditExample
from orthotune.image.families.family import Family
from orthotune.image.families.qwen_image_edit import stacked

#: sides of a mask at random, as shares of those of the image
SMALLEST, LARGEST = 0.2, 0.8


class EditingDataset(ImageDataset):
    """Images with references or masks in batches; see :class:`orthotune.image.data.cache.ImageDataset`.

    References are brought to the size of their image, cropped like the image if they have its size, otherwise at the
    centre. A mask at random is a rectangle; with a cache an image keeps its rectangle, without one it gets another in
    each epoch.

    Args:
        examples: images with references or masks.
        family: a family that reads them.
        *more: as for the class above.
        **options: as for the class above.

    Raises:
        DataError: the family reads references and there are none, or more than it reads; or it reads a mask and there
            is none.

    Example:
        >>> data = EditingDataset(read_edits("after/", [Path("before/")]), family, 1024)  # doctest: +SKIP
        >>> data.batch([0, 5]).conditions["reference"].shape  # doctest: +SKIP
        torch.Size([2, 16, 128, 128])
    """

    def __init__(
        self, examples: Sequence[EditExample], family: Family, *more: Any, random_masks: bool = False, **options: Any
    ) -> None:
        self._random_masks = random_masks
        self._read: dict[int, Conditions] = {}
        self._words_seen: dict[tuple[int, str], Conditions] = {}
        check_examples(examples, family, random_masks)
        super().__init__(examples, family, *more, **options)

    def sources(self, index: int) -> Sources:
        """The images that an example is made of, in the size of its bucket; the first dimension is 1.

        Args:
            index: of the example, plus the length of the data set for each epoch.
        """
        number = index % len(self)
        return self._sources(index, self._encoded(number if self.cache else index)[2])

    def _sources(self, index: int, how: Fit) -> Sources:
        example: Any = self.examples[index % len(self)]
        varied = index % len(self) if self.cache else index
        if self.family.reads == "references":
            shown = [_pixels(one, example.image, how) for one in example.references]
            return Sources(torch.stack(shown)[None])
        # A source of its own beside the mask: the image before something was painted into it.
        shown = [_pixels(one, example.image, how) for one in example.references[:1] or (example.image,)]
        if example.mask is None:
            mask = random_mask(how.size, f"{self.seed} mask {varied}")
        else:
            mask = _pixels(example.mask, example.image, how, sharp=True)[0] > 127
        return Sources(torch.stack(shown)[None], mask[None])

    def prepare(self, bar: bool = False) -> None:
        super().prepare(bar)
        if self.cache:
            for number, example in enumerate(self.examples):
                own: set[str] = set() if self.tags.vary else {example.caption}
                for caption in own | {""} if self._empties or not own else own:
                    self._edit(number, caption, self._encoded(number)[2])

    def _caption(self, caption: str) -> Conditions:
        # Where the text encoder sees the references, a caption alone is not encoded.
        return {} if self.family.text_reads_references else super()._caption(caption)

    def _conditions(self, captions: list[str], indices: list[int], fits: list[Fit]) -> Conditions:
        rows = [self._edit(index, caption, how) for index, caption, how in zip(indices, captions, fits, strict=True)]
        return stacked(rows) | self._sizes(indices, fits)

    def _edit(self, index: int, caption: str, how: Fit) -> Conditions:
        """The conditions of one image, without the dimension of the batch."""
        number = index % len(self)
        seen = self._read.get(number), self._words_seen.get((number, caption))
        # A caption that varies is encoded each time, as no memory and no disk could hold all orders of tags.
        keep = self.cache and (not self.tags.vary or caption == "")
        together = self.family.text_reads_references
        sources: Any = self._sources(index, how) if seen[0] is None or (together and seen[1] is None) else None
        with torch.no_grad():
            read, words = seen
            if read is None:
                read = self._from_store("latents", sources, "", lambda: self.family.encode_sources(sources))
            if words is None and together:
                words = self._from_store(
                    "captions", sources, caption, lambda: self.family.encode_captions([caption], sources), keep
                )
            elif words is None:
                encoded = {} if keep else self.family.encode_captions([caption])
                words = self._caption(caption) if keep else {name: tensor[0].cpu() for name, tensor in encoded.items()}
        if self.cache:
            self._read[number] = read
        if keep and together:
            self._words_seen[number, caption] = words
        return read | words

    def _from_store(self, kind: str, sources: Any, caption: str, encode: Any, keep: bool = True) -> Conditions:
        store = self._store(kind) if keep else None
        if store is None:
            return {name: tensor[0].cpu() for name, tensor in encode().items()}
        parts = [sources.images, *([] if sources.mask is None else [sources.mask])]
        key = digest("sources", caption, *(part.numpy().tobytes() for part in parts), tuple(parts[0].shape))
        kept = store.get(key)
        if kept is None:
            kept = {name: tensor[0].cpu() for name, tensor in encode().items()}
            store.put(key, kept)
        return kept


def check_examples(examples: Sequence[EditExample], family: Family, random_masks: bool = False) -> None:
    """Check that examples have what a family reads.

    Args:
        examples: of the data.
        family: of the model.
        random_masks: masks are made.

    Raises:
        DataError: references or masks are missing, or are too many.
    """
    if not examples:
        return
    count, masked = len(examples[0].references), random_masks or examples[0].mask is not None
    wrong = count > family.most_references if family.reads == "references" else count > 1
    if family.reads == "references" and (count == 0 or wrong):
        raise DataError(
            f"data for {family.name}", got=f"{count} references for each image",
            needed=f"1 to {family.most_references}" if family.most_references > 1 else "1",
            do="Name the folder with references=FOLDER, or the column reference of a table",
        )  # fmt: skip
    if family.reads == "mask" and not masked:
        raise DataError(
            f"data for {family.name}", got="no masks", needed="a mask for each image, white where is painted",
            do="Name the folder with masks=FOLDER, or the column mask of a table, or take masks=random",
        )  # fmt: skip
    if family.reads != "mask" and masked:
        raise DataError(f"data for {family.name}", got="masks, which this model does not read", do="Leave them out")


def random_mask(size: Size, seed: str) -> Tensor:
    """A rectangle with sides of 0.2 to 0.8 of those of the image, at a random place; bool [H, W].

    Args:
        size: height and width, in pixels.
        seed: of place and size.

    Example:
        >>> bool(random_mask((20, 30), "0").any()), random_mask((20, 30), "0").shape
        (True, torch.Size([20, 30]))
    """
    rng = random.Random(seed)
    mask = torch.zeros(size, dtype=torch.bool)
    sides = [max(1, round(rng.uniform(SMALLEST, LARGEST) * side)) for side in size]
    top, left = (rng.randint(0, length - side) for length, side in zip(size, sides, strict=True))
    mask[top : top + sides[0], left : left + sides[1]] = True
    return mask


def _pixels(file: ImageFile, image: ImageFile, how: Fit, sharp: bool = False) -> Tensor:
    """A file as uint8 [3, H, W] in the size of the image that it belongs to."""
    same = (file.height, file.width) == (image.height, image.width)
    own = how if same else fit(file.height, file.width, how.size)
    return torch.from_numpy(fitted(file.pixels(), own, sharp).copy()).permute(2, 0, 1)
