"""A rotation computed once per parameter version."""

from __future__ import annotations

from typing import Generic, TypeVar

import torch
from torch import Tensor

Kept = TypeVar("Kept")


class RotationCache(Generic[Kept]):
    """The numbers of ``R``, or what else is computed from a parameter, for the parameter as it is now.

    A parameter is known by its version and its place in memory. Some optimizers write past the version (through
    ``.data``, or from compiled code), and they do so after a backward: from then on the numbers are compared on a CPU,
    and not trusted on other devices, where a comparison would wait for the device.

    Example:
        >>> cache, v = RotationCache(), torch.zeros(1, 1)
        >>> cache.put(v, torch.eye(2), v.clone())
        >>> cache.get(v) is not None, cache.get(v.add_(1)) is None
        (True, True)
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        # One tuple, so that a replica of the module in another thread never sees half of an entry.
        self._entry: tuple[int, int, Kept, Tensor | None] | None = None
        self._doubtful = False
        #: R with the gradient to its parameter, once a training step has asked for it
        self.trained: Tensor | None = None

    def put(self, weight: Tensor, R: Kept, numbers: Tensor) -> None:
        """Keep ``R``, computed from ``weight``, of which ``numbers`` is a copy."""
        self._entry = (weight._version, weight.data_ptr(), R, numbers if weight.device.type == "cpu" else None)
        self._doubtful = False
        self.trained = None

    def get(self, weight: Tensor) -> Kept | None:
        """``R`` if ``weight`` is what it was, else None."""
        entry = self._entry
        if entry is None or entry[:2] != (weight._version, weight.data_ptr()):
            return None
        _, _, R, numbers = entry
        if self._doubtful:
            if numbers is None or not torch.equal(numbers, weight):
                return None
            self._doubtful = False
        return R

    def doubt(self) -> None:
        """A backward has passed: the next write may go unseen."""
        self._doubtful = True
