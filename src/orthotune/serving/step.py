"""Which tokens of a batch belong to which slot, from the list that the host of an engine has anyway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """The tokens of some slots, slot by slot.

    Shapes: ``index`` ``(rows,)`` the tokens, ``which`` ``(rows,)`` the slot of each.

    Attributes:
        runs: slot, its first row and the one after its last, for each slot.
        in_order: whether these are the first tokens of the batch, in its order.
    """

    index: Tensor
    which: Tensor
    runs: tuple[tuple[int, int, int], ...]
    in_order: bool

    def of(self, x: Tensor) -> Tensor:
        """The rows of ``x``.

        Args:
            x: ``(tokens, n)``.
        """
        return x if self.in_order and len(self.index) == len(x) else x.index_select(0, self.index)

    def placed(self, x: Tensor, rows: Tensor) -> Tensor:
        """``x`` with its rows replaced; a new tensor, or ``rows`` where they are all of it.

        Args:
            x: ``(tokens, n)``.
            rows: ``(rows, n)``.
        """
        return rows if self.in_order and len(self.index) == len(x) else x.index_copy(0, self.index, rows)


class Step:
    """The slots of the tokens of one step of an engine; nothing here waits for a device.

    Args:
        slots: slot of each token, -1 for the base.
        device: of the model.

    Example:
        >>> step = Step([1, -1, 0, 1], torch.device("cpu"))
        >>> sorted(step.present), step.rows(frozenset({0, 1})).index.tolist()
        ([0, 1], [2, 0, 3])
    """

    def __init__(self, slots: Sequence[int] | np.ndarray, device: torch.device) -> None:
        self._slots = np.asarray(slots, dtype=np.int64)
        self._device = device
        self._rows: dict[frozenset[int], Rows] = {}
        #: the slots that at least one token uses
        self.present = frozenset(int(slot) for slot in np.unique(self._slots) if slot >= 0)

    def __len__(self) -> int:
        """The number of tokens."""
        return len(self._slots)

    def part(self, start: int, stop: int) -> Step:
        """The step of some of the tokens.

        Args:
            start: the first token.
            stop: the one after the last.
        """
        return Step(self._slots[start:stop], self._device)

    def rows(self, slots: frozenset[int]) -> Rows:
        """The tokens of some slots.

        Args:
            slots: some of those that are present.
        """
        found = self._rows.get(slots)
        if found is None:
            found = self._rows[slots] = self._found(sorted(slots))
        return found

    def _found(self, slots: list[int]) -> Rows:
        tokens = [np.flatnonzero(self._slots == slot) for slot in slots]
        ends = np.cumsum([len(own) for own in tokens]).tolist()
        runs = tuple(zip(slots, [0, *ends[:-1]], ends, strict=True))
        index, which = np.concatenate(tokens), np.repeat(slots, [len(own) for own in tokens])
        in_order = bool((index == np.arange(len(index))).all())
        with torch.inference_mode(False):
            moved = [torch.from_numpy(part).to(self._device, non_blocking=True) for part in (index, which)]
        return Rows(moved[0], moved[1], runs, in_order)
