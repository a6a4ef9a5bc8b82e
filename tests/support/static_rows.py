"""What is wrong with a kernel, by the compiler's own report of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

import gpu_static
from orthotune.kernels import tiles
from orthotune.kernels.cards import CARDS

#: bytes of a vector register of 64 lanes
LANES = 4 * 64


def faults(rows: Sequence[gpu_static.Compiled]) -> list[gpu_static.Compiled]:
    """Rows of kernels that were refused, spill, or need more shared memory than is stated or than the card gives.

    Scalar registers that lie in the lanes of a vector register are a fault when they need more than one of these.
    """
    found = []
    for row in rows:
        largest = int(row.block_sizes.split()[-1].rpartition("-")[2])
        stated = tiles.shared_memory(row.operation, getattr(torch, row.dtype).itemsize, largest)
        fits = row.shared is not None and row.shared <= min(stated, CARDS[row.architecture].shared)
        if row.error is not None or row.spilled != 0 or (row.parked or 0) > LANES or not fits:
            found.append(row)
    return found
