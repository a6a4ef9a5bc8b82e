r"""The exact Cayley map, and the one place where the sign convention is stated.

Convention. ``R = cayley(Q) = (I - Q)(I + Q)^{-1}``; to first order ``R = I - 2 Q``. A layer that turns its input
computes ``y = (x R) W^T + b``, so ``W' = W R^T``; a layer that turns its output has ``W' = R W``.
The Neumann series of :mod:`orthotune.rotation.neumann` runs towards ``(I + Q)(I - Q)^{-1} = cayley(-Q)``: PEFT's exact
and Neumann modes turn in opposite directions for the same stored numbers, and both are kept because files hold them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

POLISH_ABOVE = 16
MOST_SQUARINGS = 5


def squarings_for(bound: float, dtype: torch.dtype) -> int | None:
    """How many factors of ``(I - Q)(I + Q^2)(I + Q^4)...`` reach the rounding of ``dtype``, when ``|Q^2| <= bound``.

    ``k`` factors leave ``|Q|^(2^(k+1))``. None when an inverse is cheaper, or the product does not converge.

    Example:
        >>> squarings_for(0.1**2, torch.float32), squarings_for(1.0, torch.float32)
        (2, None)
    """
    rounding = torch.finfo(dtype).eps / 2
    return next((k for k in range(1, MOST_SQUARINGS + 1) if bound ** (2**k) <= rounding), None)


def _inverse(Q: Tensor, eye: Tensor) -> Tensor:
    """``(I + Q)^{-1}`` of a batch ``(count, b, b)``: on a CPU, where the norm is known without waiting, a few products
    while it is small."""
    if Q.device.type == "cpu" and not torch.compiler.is_compiling() and Q.numel():
        power = Q @ Q
        # Eigenvalues of Q^2 come in pairs, so the Frobenius norm is at least sqrt(2) times the largest one.
        bound = float(torch.linalg.matrix_norm(power).amax()) / math.sqrt(2)
        if (factors := squarings_for(bound, Q.dtype)) is not None:
            A = eye - Q
            A = torch.baddbmm(A, A, power)
            for _ in range(factors - 1):
                power = power @ power
                A = torch.baddbmm(A, A, power)
            return A
    A = torch.linalg.inv_ex(Q + eye).inverse  # I + Q of a skew Q is never singular: nothing to check or wait for
    if Q.shape[-1] <= POLISH_ABOVE:
        return A
    # The rounding of an inverse grows with the block; one Newton step brings R = 2 A - I back onto the rotations.
    R = 2 * A - eye
    return 0.5 * eye + 0.75 * R - 0.25 * (R @ (R.mT @ R))


def cayley_forward(Q: Tensor) -> Tensor:
    """``R = 2 (I + Q)^{-1} - I`` without autograd; float32 or float64."""
    eye = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
    return (_inverse(Q.reshape(-1, *Q.shape[-2:]), eye) * 2 - eye).view(Q.shape)


def cayley_backward(R: Tensor, grad: Tensor) -> Tensor:
    """``dQ = -2 A^T dR A^T`` from ``R`` alone, ``A = (I + R) / 2``; its skew part is the gradient of a skew ``Q``."""
    turned = R.mT + torch.eye(R.shape[-1], dtype=R.dtype, device=R.device)
    return (turned @ grad.to(R.dtype) @ turned).mul_(-0.5)


class _Cayley(torch.autograd.Function):
    @staticmethod
    def forward(Q: Tensor) -> Tensor:
        return cayley_forward(Q)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (R,) = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            return cayley_backward(R, grad)


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
