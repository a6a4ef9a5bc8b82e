"""The only cache: values computed from a parameter, served as long as the parameter is bitwise unchanged."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from torch import Tensor, nn

# memcmp: 3 microseconds for 16,000 elements, where torch.equal takes 20.
_library = ctypes.cdll.msvcrt if sys.platform == "win32" else ctypes.CDLL(None)
_compare = _library.memcmp
_compare.argtypes, _compare.restype = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t), ctypes.c_int


class Memo:
    """Values computed from one parameter: the rotation, its autograd node, its planes.

    The only rule: **a value is served only while its parameter is bit for bit the same as when it was computed**, and
    the frozen basis, for a transform that has one.
    The elements themselves are compared, not a version counter, so that no write can be missed, however it was made:
    through ``.data``, a numpy view, shared memory, an optimizer's kernel or another process. Values made of several
    rotations (joined, stacked) hold the very tensors that they were made of and are compared with what the memos serve
    now, so that they need no rule of their own.

    On a processor the comparison costs a small part of computing a rotation. On other devices it would have to wait
    for the device, which takes longer than computing: there nothing is cached, and every call computes.

    Example:
        >>> import torch
        >>> memo, v = Memo(), nn.Parameter(torch.zeros(1, 1))
        >>> memo.keep(v, v.detach().clone(), R="a rotation")
        >>> memo.get(v, "R")
        'a rotation'
        >>> v.data.add_(1)
        tensor([[1.]])
        >>> memo.get(v, "R"), memo.explain()
        (None, 'miss: the parameter has changed')
    """

    def __init__(self) -> None:
        #: counts how often everything was dropped
        self.epoch = 0
        # One tuple, so that a replica of the module in another thread never sees half of an entry.
        self._entry: tuple[Tensor, dict[str, Any], int, Tensor | None] | None = None
        self._why = "miss: nothing was computed yet"

    @staticmethod
    def can_hold(weight: Tensor) -> bool:
        """Whether values of ``weight`` can be cached: it must be a plain tensor in CPU memory."""
        return weight.device.type == "cpu" and type(weight) in (nn.Parameter, Tensor)

    def get(self, weight: Tensor, name: str, basis: Tensor | None = None) -> Any:
        """The value ``name`` if it is cached and not stale for ``weight`` and its ``basis``, else None."""
        entry = self._entry
        if entry is None:
            return None
        if not self.can_hold(weight):
            self.drop("miss: on this device a comparison costs more than computing")
            return None
        numbers = entry[0]
        if weight.dtype is not numbers.dtype or weight.shape != numbers.shape or not weight.is_contiguous():
            same = False
        else:
            same = not _compare(entry[2], weight.data_ptr(), numbers.nbytes)
        if not same:
            self.drop("miss: the parameter has changed")
            return None
        if basis is not entry[3] and not _same(entry[3], basis):
            self.drop("miss: the basis has changed")
            return None
        return entry[1].get(name)

    @property
    def entry(self) -> object | None:
        """The present entry; a different object after any change."""
        return self._entry

    def still(self, entry: object, weight: Tensor, basis: Tensor | None = None) -> bool:
        """Whether ``entry`` is the present entry and not stale for ``weight`` and its ``basis``."""
        kept = self._entry
        if kept is None or kept is not entry:
            return False
        numbers = kept[0]
        return (
            weight.dtype is numbers.dtype
            and weight.shape == numbers.shape
            and weight.is_cpu
            and weight.is_contiguous()
            and not _compare(kept[2], weight.data_ptr(), numbers.nbytes)
            and (basis is kept[3] or _same(kept[3], basis))
        )

    def peek(self, name: str) -> Any:
        """The value ``name`` without looking at the parameter: for an owner that compares before it uses the value."""
        entry = self._entry
        return None if entry is None else entry[1].get(name)

    def keep(self, weight: Tensor, numbers: Tensor, basis: Tensor | None = None, **values: Any) -> None:
        """Cache ``values`` computed from ``weight``, of which ``numbers`` is a copy, and drop all others.

        Args:
            weight: the parameter.
            numbers: a copy of it.
            basis: frozen numbers that the values were computed from, too; they are copied.
            values: what is cached.
        """
        if self.can_hold(weight) and (basis is None or self.can_hold(basis)):
            numbers, basis = numbers.contiguous(), None if basis is None else basis.detach().clone().contiguous()
            self._entry, self._why = (numbers, values, numbers.data_ptr(), basis), "hit"

    def add(self, **values: Any) -> None:
        """Add values computed from the same elements; without effect if nothing is cached."""
        if self._entry is not None:
            self._entry[1].update(values)

    def drop(self, why: str) -> None:
        """Drop everything; :meth:`explain` returns ``why`` until something is cached again."""
        self.epoch += 1
        self._entry, self._why = None, why

    def explain(self) -> str:
        """Whether the last look was a hit or a miss, and why."""
        entry = self._entry
        if entry is None:
            return self._why
        kept = sorted(name for name, value in entry[1].items() if value is not None)
        return f"{self._why}: {', '.join(kept)} cached"


def _same(kept: Tensor | None, now: Tensor | None) -> bool:
    """Whether two bases are bit for bit the same."""
    if kept is None or now is None or not now.is_cpu or not now.is_contiguous():
        return False
    if now.dtype is not kept.dtype or now.shape != kept.shape:
        return False
    return not _compare(kept.data_ptr(), now.data_ptr(), kept.nbytes)
