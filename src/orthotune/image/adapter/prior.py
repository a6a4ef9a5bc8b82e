"""Prior preservation: each batch holds images of a subject and images of its class."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from orthotune.errors import DataError
from orthotune.image.data.batch import Batch
from orthotune.image.loop.order import Bucket, Dataset


class WithPrior:
    """A data set whose batches hold equal numbers of images of the subject and of the class.

    The mean loss of a batch is that of DreamBooth (Ruiz et al. 2023, arXiv 2208.12242, equation 2): the mean over the
    subject plus ``weight`` times the mean over the class.

    Args:
        subject: images of the subject.
        classes: images of the class; all images of both sets have one size.
        weight: of the loss on the class; 1 in the paper.
        keep: the targets for the class are the predictions of the base, not the images.

    Raises:
        DataError: images of different sizes, or a set without images.
    """

    def __init__(self, subject: Dataset, classes: Dataset, weight: float = 1.0, keep: bool = False) -> None:
        self.subject, self.classes, self.weight, self.keep = subject, classes, weight, keep
        self.epoch_in_index = any(getattr(one, "epoch_in_index", False) for one in (subject, classes))
        sizes = {one.bucket(index) for one in (subject, classes) for index in range(len(one))}
        if len(sizes) != 1 or not len(subject) or not len(classes):
            found = ", ".join(f"{width} x {height}" for height, width, *_ in sorted(sizes))
            raise DataError(
                "images of the subject and of its class",
                got=f"sizes {found}" if len(sizes) > 1 else "no images in one of the two sets",
                needed="one size for all, as they share a batch",
                do="Leave buckets=false, or train without class images" if len(sizes) > 1 else None,
            )

    def __len__(self) -> int:
        return max(len(self.subject), len(self.classes))

    def bucket(self, index: int) -> Bucket:
        """The size of all images, whichever the index."""
        return self.subject.bucket(0)

    def batch(self, indices: list[int]) -> Batch:
        """The images of the subject with these indices, modulo their number, then those of the class.

        Each time that an image of the smaller set is seen is an epoch of that set, with another order of tags.
        """
        subject = self.subject.batch([self._own(self.subject, index) for index in indices])
        classes = self.classes.batch([self._own(self.classes, index) for index in indices])
        # The batch has twice as many images, and the mean over it halves both losses.
        subject = replace(subject, weight=2 * subject.weight)
        classes = replace(classes, weight=2 * self.weight * classes.weight)
        if subject.mask is not None:  # class images count everywhere
            classes = replace(classes, mask=torch.ones(len(classes.captions), *subject.mask.shape[1:]))
        if self.keep:
            subject = replace(subject, kept=torch.zeros(len(subject.captions), dtype=torch.bool))
            classes = replace(classes, kept=torch.ones(len(classes.captions), dtype=torch.bool))
        return joined(subject, classes)

    def _own(self, data: Dataset, index: int) -> int:
        """The index in one of the two sets, with its epoch where the set has epochs."""
        epoch, place = divmod(index, len(self))
        begun, number = divmod(place, len(data))
        passes = -(-len(self) // len(data))
        return number + (epoch * passes + begun) * len(data) if getattr(data, "epoch_in_index", False) else number


def joined(one: Batch, other: Batch) -> Batch:
    """Concatenate two batches of the same structure.

    Args:
        one: the first rows.
        other: the rows after them.
    """
    values: dict[str, Any] = {}
    for field in fields(Batch):
        first, second = getattr(one, field.name), getattr(other, field.name)
        if isinstance(first, dict):
            values[field.name] = {name: torch.cat([first[name], second[name]]) for name in first}
        elif isinstance(first, Tensor):
            values[field.name] = torch.cat([first, second])
        else:
            values[field.name] = first + second if first is not None else None
    return Batch(**values)
