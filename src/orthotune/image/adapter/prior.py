"""Prior preservation: pictures of a subject beside pictures of its class in every batch."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from orthotune.errors import DataError
from orthotune.image.data.batch import Batch
from orthotune.image.loop.order import Bucket, Dataset


class WithPrior:
    """A data set whose every batch holds as many images of the class as of the subject.

    The mean loss of a batch is then that of DreamBooth (Ruiz et al. 2023, arXiv 2208.12242, equation 2): the subject's
    mean plus ``weight`` times the class's.

    Args:
        subject, classes: the two sets; all images of one size.
        weight: of the class; 1 as published.
        keep: take for the class what the base predicts of its images as the target, not the images.

    Raises:
        DataError: images of different sizes, or none.
    """

    def __init__(self, subject: Dataset, classes: Dataset, weight: float = 1.0, keep: bool = False) -> None:
        self.subject, self.classes, self.weight, self.keep = subject, classes, weight, keep
        sizes = {one.bucket(index) for one in (subject, classes) for index in range(len(one))}
        if len(sizes) != 1 or not len(subject) or not len(classes):
            found = ", ".join(f"{width} x {height}" for height, width in sorted(sizes))
            raise DataError(
                "pictures of the subject and of its class",
                got=f"sizes {found}" if len(sizes) > 1 else "none of one of them",
                needed="one size for all, as they share a batch",
                do="Leave buckets=false, or train without class pictures" if len(sizes) > 1 else None,
            )

    def __len__(self) -> int:
        return max(len(self.subject), len(self.classes))

    def bucket(self, index: int) -> Bucket:
        """The one size of all."""
        return self.subject.bucket(0)

    def batch(self, indices: list[int]) -> Batch:
        """The subject's images of these numbers, counted round, then the class's."""
        subject = self.subject.batch([index % len(self.subject) for index in indices])
        classes = self.classes.batch([index % len(self.classes) for index in indices])
        # Both together are twice as many: a mean over them halves each.
        subject = replace(subject, weight=2 * subject.weight)
        classes = replace(classes, weight=2 * self.weight * classes.weight)
        if self.keep:
            subject = replace(subject, kept=torch.zeros(len(subject.captions), dtype=torch.bool))
            classes = replace(classes, kept=torch.ones(len(classes.captions), dtype=torch.bool))
        return joined(subject, classes)


def joined(one: Batch, other: Batch) -> Batch:
    """Two batches as one."""
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
