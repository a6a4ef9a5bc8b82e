"""Packed vector <-> skew-symmetric matrix."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from orthotune.errors import OrthotuneError

_triangles: dict[tuple[int, torch.device, bool], Tensor] = {}
_squares: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}


def element_count(block_size: int) -> int:
    """Number of parameters of one skew block: ``b (b - 1) / 2``."""
    return block_size * (block_size - 1) // 2


def block_size_of(elements: int) -> int:
    """The block size whose strict upper triangle has ``elements`` elements.

    Raises:
        OrthotuneError: no block size has that many.

    Example:
        >>> block_size_of(28)
        8
    """
    block_size = (1 + math.isqrt(1 + 8 * elements)) // 2
    if element_count(block_size) != elements:
        raise OrthotuneError(
            f"a packed block of {elements} elements",
            needed="b (b - 1) / 2 elements for some block size b, such as 28 for b = 8",
            do="The tensor is not a packed skew matrix; check which format the file has",
        )
    return block_size


def triangle(block_size: int, device: torch.device, lower: bool = False) -> Tensor:
    """Flat positions ``row * b + col`` of the strict upper triangle, row by row; int64 ``(b (b - 1) / 2,)``.

    ``lower`` gives the mirrored positions, in the same order.
    """
    if torch.compiler.is_compiling():  # an input of compiled code would tie its size to that of a batch
        return _triangle(block_size, device, lower)
    key = (block_size, device, lower)
    if key not in _triangles:
        # An index made in inference mode could never take part in a later training step.
        with torch.inference_mode(False):
            index = _triangle(block_size, device, lower)
        if type(index) is not torch.Tensor:
            return index  # a fake tensor must not outlive its trace
        _triangles[key] = index
    return _triangles[key]


def _triangle(block_size: int, device: torch.device, lower: bool) -> Tensor:
    rows, cols = torch.triu_indices(block_size, block_size, 1, device=device).unbind()
    return cols * block_size + rows if lower else rows * block_size + cols


def _square(block_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each element of a block, row by row: its index in the packed vector, and its sign (0, 1 or -1)."""
    if torch.compiler.is_compiling():
        return _places(block_size, device)
    key = (block_size, device)
    if key not in _squares:
        with torch.inference_mode(False):
            place, sign = _places(block_size, device)
        if type(place) is not torch.Tensor:
            return place, sign
        _squares[key] = place, sign
    return _squares[key]


def _places(block_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    place = torch.zeros(block_size * block_size, dtype=torch.int64, device=device)
    sign = torch.zeros(block_size * block_size, device=device)
    order = torch.arange(element_count(block_size), device=device)
    for lower in (False, True):
        where = triangle(block_size, device, lower)
        place[where], sign[where] = order, -1.0 if lower else 1.0
    return place, sign


def unpack(v: Tensor, block_size: int) -> Tensor:
    """Skew-symmetric ``Q`` whose strict upper triangle, row by row, is ``v``.

    Shapes: ``v`` ``(..., b (b - 1) / 2)`` -> ``(..., b, b)``, same dtype.
    Source: PEFT >= 0.16 ``oft_R.weight``.

    Example:
        >>> unpack(torch.tensor([1.0]), 2)
        tensor([[ 0.,  1.],
                [-1.,  0.]])
    """
    # One gather of all elements and a product with the signs take half the time of a scatter and a transpose.
    if block_size == 1:
        return v.new_zeros(*v.shape[:-1], 1, 1)
    index, sign = _square(block_size, v.device)
    Q = v.gather(-1, index.expand(*v.shape[:-1], -1)) * sign.to(v.dtype)
    return Q.unflatten(-1, (block_size, block_size))


def pack(Q: Tensor, lower: bool = False) -> Tensor:
    """Strict upper triangle of ``Q`` row by row, the inverse of :func:`unpack`.

    ``lower`` packs the upper triangle of the transpose. Shapes: ``(..., b, b)`` -> ``(..., b (b - 1) / 2)``.

    Example:
        >>> pack(torch.tensor([[0.0, 3.0], [-3.0, 0.0]]))
        tensor([3.])
    """
    place = triangle(Q.shape[-1], Q.device, lower)
    return Q.flatten(-2).gather(-1, place.expand(*Q.shape[:-2], -1))
