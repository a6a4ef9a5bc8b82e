"""Reading a weight through the layer itself, for kernels that store it in an order of their own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

#: rows of the identity at a time, so that a wide layer needs little memory beside its weight
ROWS = 1024


@torch.no_grad()
def through_identity(
    multiply: Callable[[Tensor], Tensor], features: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The float32 weight ``(out, in)`` of ``multiply``, a linear map without a bias, as its outputs for unit vectors.

    Exact up to the dtype of the outputs: each of them is one number of the weight.

    Example:
        >>> W = torch.arange(6.0).view(2, 3)
        >>> through_identity(lambda x: x @ W.T, (2, 3), torch.float32, W.device).tolist()
        [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    """
    out, width = features
    weight = torch.empty(out, width, device=device)
    for start in range(0, width, ROWS):
        rows = torch.arange(start, min(start + ROWS, width), device=device)
        units = torch.zeros(len(rows), width, dtype=dtype, device=device)
        units[rows - start, rows] = 1
        weight[:, rows] = multiply(units).T.float()
    return weight
