"""The images of each step: determined by the seed and the step, so that a resumed run needs no saved position."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Protocol

from orthotune.image.data.batch import Batch

#: Height and width in pixels; of a clip also the number of frames.
Bucket = tuple[int, ...]


class Dataset(Protocol):
    """Training images.

    ``batch`` must depend on its indices only: other randomness would not be repeated after a resume. If the attribute
    ``epoch_in_index`` is true, the loop passes ``index + epoch * len(data)``, and the data set may vary an image from
    epoch to epoch: another crop, another dropped caption.
    """

    def __len__(self) -> int: ...

    def bucket(self, index: int) -> Bucket:
        """Height and width of an image in pixels, of a clip also its frames; all images of a batch have the same."""

    def batch(self, indices: list[int]) -> Batch:
        """The images with these indices, all of one bucket; an index may occur twice."""


class Order:
    """The batches of an epoch: each image once, shuffled by the seed, with one bucket per batch.

    The last batch of a bucket is filled with random images of the same bucket, so that all batches have the same size.

    Args:
        buckets: the bucket of each image.
        batch_size: images per batch and process.
        seed: of the order.
        processes: number of processes; each batch goes to one of them.
        epoch_in_index: whether indices include the epoch, see :class:`Dataset`.

    Example:
        >>> order = Order([(32, 32)] * 5, batch_size=2, seed=0)
        >>> sorted(set(order.indices(0) + order.indices(1) + order.indices(2)))
        [0, 1, 2, 3, 4]
        >>> order.indices(7) == Order([(32, 32)] * 5, batch_size=2, seed=0).indices(7)
        True
    """

    def __init__(
        self, buckets: Sequence[Bucket], batch_size: int, seed: int, processes: int = 1, epoch_in_index: bool = False
    ) -> None:
        self.batch_size, self.seed, self.processes = batch_size, seed, processes
        self._stride = len(buckets) if epoch_in_index else 0
        self._members: dict[Bucket, list[int]] = {}
        for index, bucket in enumerate(buckets):
            self._members.setdefault(bucket, []).append(index)
        self._epoch, self._batches = -1, list[list[int]]()

    @property
    def per_epoch(self) -> int:
        """Batches per epoch, over all processes."""
        return sum(-(-len(members) // self.batch_size) for members in self._members.values())

    def indices(self, micro_step: int, process: int = 0) -> list[int]:
        """The indices of a batch.

        Args:
            micro_step: number of the forward, counted from the start of training.
            process: number of the process.
        """
        epoch, number = divmod(micro_step * self.processes + process, self.per_epoch)
        if epoch != self._epoch:
            # A generator that is seeded with text gives the same order on all machines and versions of Python 3.
            self._epoch, self._batches = epoch, list(self._shuffled_batches(random.Random(f"{self.seed} {epoch}")))
        return [index + epoch * self._stride for index in self._batches[number]]

    def _shuffled_batches(self, rng: random.Random) -> Iterator[list[int]]:
        batches = []
        for members in self._members.values():
            shuffled: list[int] = []
            while len(shuffled) < len(members) or len(shuffled) % self.batch_size:
                again = rng.sample(members, len(members))
                missing = -len(shuffled) % self.batch_size if len(shuffled) >= len(members) else len(again)
                shuffled += again[:missing]
            batches += [shuffled[at : at + self.batch_size] for at in range(0, len(shuffled), self.batch_size)]
        rng.shuffle(batches)
        yield from batches
