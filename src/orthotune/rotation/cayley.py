r"""The exact Cayley map, and the one place where the sign convention is stated.

Convention. ``R = cayley(Q) = (I - Q)(I + Q)^{-1}``; to first order ``R = I - 2 Q``. A layer that rotates its input
computes ``y = (x R) W^T + b``, so ``W' = W R^T``; a layer that rotates its output has ``W' = R W``.
The Neumann series of :mod:`orthotune.rotation.neumann` runs towards ``(I + Q)(I - Q)^{-1} = cayley(-Q)``: PEFT's exact
and Neumann modes rotate in opposite directions for the same stored parameters; files of both kinds exist.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

# The rounding of an inverse, and of many products, grows with the block; from here on one Newton step mends it.
INVERSE_POLISH = 16
PRODUCT_POLISH = 64
MOST_FACTORS = 5


def factors_for(largest: float, dtype: torch.dtype) -> int | None:
    """How many factors ``(I + E)(I + E^2)(I + E^4)...`` reach the rounding of ``dtype``, see :func:`_by_products`.

    ``largest`` bounds the eigenvalues of ``-Q^2``; ``k`` factors leave ``|E|^(2^k)``. None when an inverse is cheaper.

    Example:
        >>> factors_for(0.1**2, torch.float32), factors_for(4.0**2, torch.float32)
        (2, None)
    """
    rounding, norm = torch.finfo(dtype).eps / 2, (largest / 2) / (1 + largest / 2)
    return next((k for k in range(1, MOST_FACTORS + 1) if norm ** (2**k) <= rounding), None)


def _by_products(Q: Tensor) -> Tensor | None:
    """``R`` of a batch ``(count, b, b)`` on a CPU, where the norm is known without waiting; None when it is too large.

    The eigenvalues of ``S = -Q^2`` lie in ``[0, s]``. With ``c = 1 + s / 2``, ``E = I - (I + S) / c`` has a norm of at
    most ``(s / 2) / c < 1``, and ``(I + Q)^{-1} = (I - Q)(I + S)^{-1} = (I - Q)(I + E)(I + E^2)(I + E^4).. / c``.
    """
    E = torch.bmm(Q, Q)
    # Eigenvalues of Q^2 come in pairs, so the Frobenius norm is at least sqrt(2) times the largest one.
    largest = float(torch.linalg.matrix_norm(E).amax()) / math.sqrt(2)
    factors = factors_for(largest, Q.dtype)
    if factors is None:
        return None
    c = 1 + largest / 2
    E.div_(c).diagonal(dim1=-2, dim2=-1).add_(largest / 2 / c)
    power = torch.bmm(E, E) if factors > 1 else None
    product = E
    product.diagonal(dim1=-2, dim2=-1).add_(1)
    for left in range(factors - 2, -1, -1):
        assert power is not None
        product = torch.baddbmm(product, product, power)
        power = torch.bmm(power, power) if left else None
    R = torch.baddbmm(product, Q, product, beta=2 / c, alpha=-2 / c)
    R.diagonal(dim1=-2, dim2=-1).sub_(1)
    return R if Q.shape[-1] <= PRODUCT_POLISH else _polished(R)


def _polished(R: Tensor) -> Tensor:
    """One Newton step back onto the rotations."""
    return 1.5 * R - 0.5 * (R @ (R.mT @ R))


def _by_inverse(Q: Tensor) -> Tensor:
    eye = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
    # I + Q of a skew Q is never singular: nothing to check, so nothing to wait for.
    # LAPACK writes columns; products of rows and of columns round apart, and one layout everywhere has one result.
    R = 2 * torch.linalg.inv_ex(Q + eye).inverse.contiguous() - eye
    return R if Q.shape[-1] <= INVERSE_POLISH else _polished(R)


def cayley_forward(Q: Tensor) -> Tensor:
    """``R = 2 (I + Q)^{-1} - I`` without autograd; float32 or float64."""
    batch = Q.reshape(-1, *Q.shape[-2:])
    R = None
    if Q.device.type == "cpu" and not torch.compiler.is_compiling() and Q.numel():
        R = _by_products(batch)
    return (_by_inverse(batch) if R is None else R).view(Q.shape)


def cayley_backward(R: Tensor, grad: Tensor) -> Tensor:
    """``dQ = -(I + R^T) dR (I + R^T) / 2`` from ``R`` alone; its skew part is the gradient of a skew ``Q``.

    This is ``-2 A^T dR A^T`` with ``A = (I + Q)^{-1} = (I + R) / 2``.
    """
    rotated = R.reshape(-1, *R.shape[-2:]).mT
    G = grad.to(R.dtype).reshape(-1, *R.shape[-2:])
    G = torch.baddbmm(G, rotated, G)
    return torch.baddbmm(G, G, rotated, beta=-0.5, alpha=-0.5).view(R.shape)


class _Cayley(torch.autograd.Function):
    @staticmethod
    def forward(Q: Tensor) -> Tensor:
        return cayley_forward(Q)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # Plain operations on R, which is connected to Q by this node: a gradient of the gradient passes through both.
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


def cayley_plain(Q: Tensor) -> Tensor:
    """:func:`cayley` in plain operations of torch, which every transform of functions can look through.

    Shapes: ``(..., b, b)`` -> ``(..., b, b)``, float32 or float64.

    Example:
        >>> cayley_plain(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
        tensor([[ 0., -1.],
                [ 1.,  0.]])
    """
    eye = torch.eye(Q.shape[-1], dtype=Q.dtype, device=Q.device)
    return 2 * torch.linalg.inv(Q + eye) - eye


def inverse_cayley(R: Tensor) -> Tensor:
    """The skew ``Q`` with ``cayley(Q) = R``; defined if no plane is rotated by exactly pi.

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
