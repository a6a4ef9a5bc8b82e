r"""The exact Cayley map, and the one place where the sign convention is stated.

Convention. ``R = cayley(Q) = (I - Q)(I + Q)^{-1}``; to first order ``R = I - 2 Q``. A layer that turns its input
computes ``y = (x R) W^T + b``, so ``W' = W R^T``; a layer that turns its output has ``W' = R W``.
The Neumann series of :mod:`orthotune.rotation.neumann` runs towards ``(I + Q)(I - Q)^{-1} = cayley(-Q)``: PEFT's exact
and Neumann modes turn in opposite directions for the same stored numbers, and both are kept because files hold them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

POLISH_ABOVE = 32


class _Cayley(torch.autograd.Function):
    """``R = 2 A - I`` with ``A = (I + Q)^{-1}``; backward from ``R`` alone, ``A = (I + R) / 2``."""

    @staticmethod
    def forward(Q: Tensor) -> Tensor:
        eye = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
        R = torch.linalg.inv(Q + eye) * 2 - eye
        # The rounding of the inverse grows with the block; one Newton step brings R back onto the rotations.
        return R if Q.shape[-1] <= POLISH_ABOVE else 1.5 * R - 0.5 * (R @ (R.mT @ R))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (R,) = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            turned = R.mT + torch.eye(R.shape[-1], dtype=R.dtype, device=R.device)
            return (turned @ grad.to(R.dtype) @ turned).mul_(-0.5)


def cayley(Q: Tensor) -> Tensor:
    """Rotation ``(I - Q)(I + Q)^{-1}`` of a skew-symmetric ``Q``; orthogonal to rounding.

    Shapes: ``(..., b, b)`` -> ``(..., b, b)``. float32 or float64; a lower precision is raised to float32.
    Source: OFT, arXiv 2306.07280, section 3.2.

    Example:
        >>> cayley(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
        tensor([[ 0., -1.],
                [ 1.,  0.]])
    """
    if Q.dtype not in (torch.float32, torch.float64):
        Q = Q.float()
    with torch.autocast(Q.device.type, enabled=False):
        return _Cayley.apply(Q)


def inverse_cayley(R: Tensor) -> Tensor:
    """The skew ``Q`` with ``cayley(Q) = R``; defined when no plane is turned by exactly pi.

    Shapes: ``(..., b, b)`` -> ``(..., b, b)``.

    Raises:
        torch.linalg.LinAlgError: ``R`` has the eigenvalue -1.

    Example:
        >>> Q = torch.tensor([[0.0, 0.5], [-0.5, 0.0]])
        >>> torch.allclose(inverse_cayley(cayley(Q)), Q)
        True
    """
    eye = torch.eye(R.shape[-1], dtype=R.dtype, device=R.device)
    Q = torch.linalg.solve(eye + R, eye - R)
    return (Q - Q.mT) / 2
