"""How far a number can lie from the nearest one that a quantized weight can hold."""

from __future__ import annotations

import torch
from torch import Tensor


def grouped(weight: Tensor, size: int) -> Tensor:
    """``weight`` ``(out, in)`` in runs of ``size`` along its flattened rows: ``(n, size)``, the last run filled with 0.

    Example:
        >>> grouped(torch.ones(2, 3), 4).tolist()
        [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]]
    """
    flat = weight.flatten()
    return torch.nn.functional.pad(flat, (0, -flat.numel() % size)).view(-1, size)


def uniform(weight: Tensor, bits: int, group: int | None = None, symmetric: bool = False) -> Tensor:
    """Half a step of an integer grid that is fitted to every group of a row: ``(out, in)``.

    Args:
        weight: ``(out, in)``.
        bits: of one number.
        group: number of elements along ``in`` that share a scale; None for the entire row.
        symmetric: the grid goes from ``-max`` to ``max`` of the absolute values; otherwise from min to max, 0 included.

    Example:
        >>> uniform(torch.tensor([[-1.0, 0.5, 2.0, 0.0]]), bits=2).tolist()
        [[0.5, 0.5, 0.5, 0.5]]
    """
    out, width = weight.shape
    group = group if group and group > 0 else width
    runs = torch.nn.functional.pad(weight.float(), (0, -width % group)).view(out, -1, group)
    if symmetric:
        steps = runs.abs().amax(-1, keepdim=True) / max(2 ** (bits - 1) - 1, 1)
    else:
        low, high = runs.amin(-1, keepdim=True).clamp(max=0), runs.amax(-1, keepdim=True).clamp(min=0)
        steps = (high - low) / (2**bits - 1)
    return (steps / 2).expand_as(runs).reshape(out, -1)[:, :width]


def floating(weight: Tensor, dtype: torch.dtype, group: int | None = None) -> Tensor:
    """Half a unit in the last place of an 8-bit float whose largest value is fitted to every group of a row.

    Args:
        weight: ``(out, in)``.
        dtype: such as ``torch.float8_e4m3fn``.
        group: number of elements along ``in`` that share a scale; None for one scale of the entire tensor.

    Example:
        >>> floating(torch.tensor([[448.0, 1.0]]), torch.float8_e4m3fn).tolist()
        [[28.0, 0.0625]]
    """
    info, (out, width) = torch.finfo(dtype), weight.shape
    runs = weight.float().abs().view(1, -1) if group is None else grouped(weight.float().abs(), group)
    scale = runs.amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / info.max
    half = torch.maximum(runs * info.eps / 2, scale * info.smallest_normal * info.eps / 2)
    return half.flatten()[: out * width].view(out, width)


def codebook(weight: Tensor, codes: Tensor, group: int) -> Tensor:
    """Half the gap between the two neighbouring codes, times the largest absolute value of a run of ``group`` elements.

    Args:
        weight: ``(out, in)``, flattened row by row into runs.
        codes: the values that a number can take, in any order, within -1 and 1.
        group: elements of a run.

    Example:
        >>> codebook(torch.tensor([[2.0, 0.2]]), torch.tensor([-1.0, 0.0, 1.0]), 2).tolist()
        [[1.0, 1.0]]
    """
    codes, runs = codes.float().sort().values.unique(), grouped(weight.float(), group)
    largest = runs.abs().amax(-1, keepdim=True)
    place = torch.bucketize(runs / largest.clamp(min=torch.finfo(torch.float32).tiny), codes).clamp(1, len(codes) - 1)
    half = (codes[place] - codes[place - 1]) / 2 * largest
    return half.flatten()[: weight.numel()].view_as(weight)
