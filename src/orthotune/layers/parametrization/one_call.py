"""On a GPU, where no memo can hold a rotation: what one call of a model has computed, for the rest of that call."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


class _Calls(threading.local):
    found: dict[tuple[int, bool], tuple[Tensor, Any, Tensor]] | None = None


_calls = _Calls()


@contextmanager
def one_call() -> Iterator[None]:
    """One call of a model, or one generation: its rotations are read when the first of a group is needed.

    Every layer of the call then has the rotations of that moment. Numbers that are written to while the model is being
    called are seen by the next call. A call inside a call belongs to the outer one.

    Example:
        >>> with one_call():
        ...     found_in_call(torch.zeros(1), None, False) is None
        True
    """
    if torch.compiler.is_compiling() or _calls.found is not None:
        yield
        return
    _calls.found = {}
    try:
        yield
    finally:
        _calls.found = None


def in_one_call() -> bool:
    """Whether a model is being called in this thread.

    Example:
        >>> in_one_call()
        False
    """
    return _calls.found is not None


def found_in_call(weight: Tensor, strength: Any, trained: bool) -> Tensor | None:
    """What this call has computed from ``weight`` at ``strength``, with or without a gradient; None if nothing."""
    kept = (_calls.found or {}).get((id(weight), trained))
    return kept[2] if kept is not None and kept[0] is weight and kept[1] is strength else None


def keep_in_call(weight: Tensor, strength: Any, trained: bool, R: Tensor) -> None:
    """Keep ``R`` for the rest of this call; without effect outside of one."""
    if _calls.found is not None:
        _calls.found[id(weight), trained] = (weight, strength, R)
