"""Memory for whole weights in large pages: handing out small ones takes the system longer than turning the weight."""

from __future__ import annotations

import ctypes
import mmap
import sys
from functools import cache
from typing import Any

import torch
from torch import Tensor

#: Bytes from which it pays; what is smaller comes out of memory that the process holds already.
LARGE = 4 << 20
_PAGE, _HUGE_PAGES = mmap.PAGESIZE, 14  # the latter is MADV_HUGEPAGE of Linux's <sys/mman.h>


def empty_like(W: Tensor) -> Tensor:
    """``torch.empty_like(W)``, in large pages where the system has them (Linux, main memory, 4 MiB and more).

    Only advice to the system: where it is not taken the memory is the usual one.

    Example:
        >>> empty_like(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """
    return advised(torch.empty_like(W, requires_grad=False))


def advised(fresh: Tensor) -> Tensor:
    """The same tensor, whose memory nobody has written to yet, in large pages where the system has them.

    Example:
        >>> advised(torch.empty(8 << 20, dtype=torch.uint8)).numel()
        8388608
    """
    size = fresh.numel() * fresh.element_size()
    plain = type(fresh) is Tensor and fresh.device.type == "cpu" and fresh.is_contiguous()
    madvise = _madvise() if plain and size >= LARGE else None
    if madvise is not None:
        start = -(-fresh.data_ptr() // _PAGE) * _PAGE
        madvise(
            ctypes.c_void_p(start), ctypes.c_size_t((fresh.data_ptr() + size - start) // _PAGE * _PAGE), _HUGE_PAGES
        )
    return fresh


@cache
def _madvise() -> Any:
    return getattr(ctypes.CDLL(None), "madvise", None) if sys.platform == "linux" else None
