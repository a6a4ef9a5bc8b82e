"""COFT: rotations kept within a ball around the identity."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def coft_radius(eps: float, rows: int) -> float:
    """Radius for each stored block: ``eps / sqrt(rows)``, on the Frobenius norm of the skew matrix.

    ``rows`` is the number of stored blocks (1 when blocks are shared). Source: PEFT >= 0.16.
    """
    return eps / math.sqrt(rows)


def project(v: Tensor, radius: float) -> Tensor:
    """Project each packed block of ``v`` whose skew matrix is outside of the ball to its surface.

    Shapes: ``(..., b (b - 1) / 2)`` -> the same. ``radius`` is a Frobenius norm of the skew matrix, sqrt(2) |v|. A
    block inside the ball is returned bit for bit, and projecting twice equals projecting once.

    Example:
        >>> project(torch.tensor([[3.0, 4.0, 0.0]]), radius=math.sqrt(2.0)).norm().item()
        1.0
    """
    norm = torch.linalg.vector_norm(v, dim=-1, keepdim=True, dtype=torch.promote_types(v.dtype, torch.float32))
    norm = norm * math.sqrt(2)
    # Slack for the rounding of v and for that of the sum: a block on the surface must not move again at every step.
    slack = 8 * torch.finfo(v.dtype).eps + math.sqrt(v.shape[-1]) / 4 * torch.finfo(norm.dtype).eps
    outside = norm > radius * (1 + slack)
    # Two selections: no division by zero reaches the gradient, and a block inside is multiplied by 1 exactly.
    shrink = torch.where(outside, radius / torch.where(outside, norm, 1.0), 1.0)
    return (v * shrink).to(v.dtype)
