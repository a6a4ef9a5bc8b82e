"""Which pictures each step sees: a function of the seed and the step alone, so that a resumed run needs no position."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Protocol

from orthotune.image.data.batch import Batch

Bucket = tuple[int, int]


class Dataset(Protocol):
    """Images to learn from.

    ``batch`` must be a function of its indices alone: what is random in it would not come back after a resume. A data
    set whose attribute ``turns`` is true is asked for ``index + epoch * len(data)``, and may show an image in another
    way in each epoch: another crop, another caption dropped.
    """

    def __len__(self) -> int: ...

    def bucket(self, index: int) -> Bucket:
        """Height and width in pixels of an image; images of one batch have the same."""

    def batch(self, indices: list[int]) -> Batch:
        """The images with these numbers, all of one bucket; a number may come twice."""


class Order:
    """The batches of every epoch: each image once, in an order drawn from the seed, never two buckets in one batch.

    The last batch of a bucket is filled up with images of the same bucket, drawn anew, so that all have one size.

    Args:
        buckets: the bucket of each image.
        batch_size: images per batch and process.
        seed: decides the order.
        processes: how many take batches side by side; each batch goes to one of them.
        turns: whether an index also tells the epoch, see :class:`Dataset`.

    Example:
        >>> order = Order([(32, 32)] * 5, batch_size=2, seed=0)
        >>> sorted(set(order.indices(0) + order.indices(1) + order.indices(2)))
        [0, 1, 2, 3, 4]
        >>> order.indices(7) == Order([(32, 32)] * 5, batch_size=2, seed=0).indices(7)
        True
    """

    def __init__(
        self, buckets: Sequence[Bucket], batch_size: int, seed: int, processes: int = 1, turns: bool = False
    ) -> None:
        self.batch_size, self.seed, self.processes = batch_size, seed, processes
        self._turn = len(buckets) if turns else 0
        self._members: dict[Bucket, list[int]] = {}
        for index, bucket in enumerate(buckets):
            self._members.setdefault(bucket, []).append(index)
        self._epoch, self._batches = -1, list[list[int]]()

    @property
    def per_epoch(self) -> int:
        """Batches until every image was seen, over all processes."""
        return sum(-(-len(members) // self.batch_size) for members in self._members.values())

    def indices(self, micro_step: int, process: int = 0) -> list[int]:
        """The images that ``process`` sees at ``micro_step``: forwards counted from the start of training."""
        epoch, number = divmod(micro_step * self.processes + process, self.per_epoch)
        if epoch != self._epoch:
            # A generator seeded with a text gives the same order on every machine and version of Python 3.
            self._epoch, self._batches = epoch, list(self._draw(random.Random(f"{self.seed} {epoch}")))
        return [index + epoch * self._turn for index in self._batches[number]]

    def _draw(self, chance: random.Random) -> Iterator[list[int]]:
        batches = []
        for members in self._members.values():
            shuffled: list[int] = []
            while len(shuffled) < len(members) or len(shuffled) % self.batch_size:
                again = chance.sample(members, len(members))
                missing = -len(shuffled) % self.batch_size if len(shuffled) >= len(members) else len(again)
                shuffled += again[:missing]
            batches += [shuffled[at : at + self.batch_size] for at in range(0, len(shuffled), self.batch_size)]
        chance.shuffle(batches)
        yield from batches
