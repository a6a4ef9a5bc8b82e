"""Multiplicative dropout: in training, a block is the identity with some probability."""

from __future__ import annotations

import torch
from torch import Tensor


def drop_blocks(R: Tensor, probability: float, count: int) -> Tensor:
    """Each of ``count`` blocks kept, or replaced by the identity with ``probability``, independently.

    Shapes: ``R`` ``(count, b, b)``, or ``(1, b, b)`` for a shared block; returns ``(count, b, b)``: where a shared
    block acts it is dropped place by place.

    Example:
        >>> drop_blocks(torch.zeros(1, 2, 2), 1.0, 3).shape
        torch.Size([3, 2, 2])
    """
    keep = torch.rand(count, 1, 1, device=R.device) >= probability
    return torch.where(keep, R, torch.eye(R.shape[-1], dtype=R.dtype, device=R.device))
