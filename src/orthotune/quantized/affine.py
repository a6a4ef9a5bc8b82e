"""Integer codes with a scale and a zero point for every group of a row, as AWQ and Intel's weight-only layers store."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from orthotune.quantized.rounding import uniform


class Codes(NamedTuple):
    """``weight = (codes - zeros) * scales``, with ``zeros`` and ``scales`` repeated along their group."""

    codes: Tensor  #: int32 ``(out, in)``, within 0 and ``2**bits - 1``
    zeros: Tensor  #: int32 ``(out, groups)``
    scales: Tensor  #: ``(out, groups)`` in the dtype in which they are stored


def fit(weight: Tensor, bits: int, group: int, dtype: torch.dtype, symmetric: bool = False) -> Codes:
    """The codes nearest to ``weight`` ``(out, in)`` on a grid that covers every group of ``group`` elements of a row.

    The scale is rounded up to ``dtype`` first and the codes are chosen with what will be stored; codes never leave
    their range, where a packed neighbour would be changed. ``symmetric`` keeps the zero point in the middle.

    Example:
        >>> found = fit(torch.tensor([[-1.0, 0.0, 0.5, 2.0]]), bits=2, group=4, dtype=torch.float32)
        >>> found.codes.tolist(), found.zeros.tolist()
        ([[0, 1, 1, 3]], [[1]])
    """
    (out, width), largest = weight.shape, 2**bits - 1
    runs = pad(weight.float(), (0, -width % group)).view(out, -1, group)
    low, high = runs.amin(-1).clamp(max=0), runs.amax(-1).clamp(min=0)
    if symmetric:
        middle = 2 ** (bits - 1)
        steps = torch.maximum(high, -low) / (middle - 1)
    else:
        steps = (high - low) / largest
    info = torch.finfo(dtype)
    scales = (steps + (steps * info.eps).clamp(min=info.smallest_normal * info.eps)).to(dtype)
    zeros = torch.full_like(low, middle) if symmetric else (-low / scales.float()).round().clamp(0, largest)
    codes = ((runs / scales.float()[..., None]).round() + zeros[..., None]).clamp(0, largest)
    return Codes(codes.view(out, -1)[:, :width].to(torch.int32), zeros.to(torch.int32), scales)


def rounding(weight: Tensor, bits: int, group: int, dtype: torch.dtype, symmetric: bool = False) -> Tensor:
    """How far :func:`fit` may put each number: half a step, and what the scale and the product lose in ``dtype``."""
    half, info = uniform(weight, bits, group, symmetric), torch.finfo(dtype)
    return half + (2 * half + weight.abs()) * info.eps + 2 * info.smallest_normal * info.eps
