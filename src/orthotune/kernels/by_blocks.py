"""The exact Cayley map of large blocks on a GPU: batched products of halves, whose smallest inverses one kernel makes.

``I + Q`` of a skew ``Q`` has the identity as its symmetric part. So has, at least, every Schur complement
``D - C A^{-1} B`` of it, and elimination by blocks needs no pivots, whatever the norm of ``Q`` is: the number of
products follows from the size alone, and nothing waits for the device. Source: Golub and Van Loan, Matrix
Computations, section 4.3.2 (positive definite unsymmetric systems).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from orthotune.kernels.tiles import LARGEST_CAYLEY
from orthotune.rotation.packing import unpack


def inverse_by_blocks(A: Tensor, small_inverse: Callable[[Tensor], Tensor]) -> Tensor:
    """Inverses of matrices whose symmetric part is at least the identity.

    Shapes: ``(count, n, n)`` -> ``(count, n, n)``, float32 or float64.

    Args:
        A: the matrices.
        small_inverse: the same for matrices of at most ``tiles.LARGEST_CAYLEY`` rows.

    Example:
        >>> inverse_by_blocks(2 * torch.eye(64)[None], torch.linalg.inv)[0, 0, 0].item()
        0.5
    """
    n = A.shape[-1]
    if n <= LARGEST_CAYLEY:
        return small_inverse(A)
    half = n // 2
    B, C = A[:, :half, half:], A[:, half:, :half]
    first = inverse_by_blocks(A[:, :half, :half].contiguous(), small_inverse)
    left = torch.bmm(C, first)
    last = inverse_by_blocks(torch.baddbmm(A[:, half:, half:], left, B, alpha=-1), small_inverse)
    right = torch.bmm(first, B)
    below = torch.bmm(last, left)  # minus the block below the diagonal
    upper = torch.cat((torch.baddbmm(first, right, below), -torch.bmm(right, last)), dim=2)
    return torch.cat((upper, torch.cat((-below, last), dim=2)), dim=1)


def exact_by_blocks(v: Tensor, block_size: int, small_inverse: Callable[[Tensor], Tensor]) -> Tensor:
    """``cayley(unpack(v))``: ``(rows, n)`` -> ``(rows, b, b)`` float32 or better, without autograd.

    Args:
        v: stored parameters.
        block_size: size of a block.
        small_inverse: see :func:`inverse_by_blocks`.

    Example:
        >>> exact_by_blocks(torch.zeros(1, 2016), 64, torch.linalg.inv)[0].trace().item()
        64.0
    """
    Q = unpack(v.to(torch.promote_types(v.dtype, torch.float32)), block_size)
    eye = torch.eye(block_size, dtype=Q.dtype, device=Q.device)
    with full_float32(v.device):
        R = 2 * inverse_by_blocks(Q + eye, small_inverse) - eye
        # One Newton step: the rounding of many products grows with the block.
        return torch.baddbmm(R, R, torch.bmm(R.mT, R), beta=1.5, alpha=-0.5)


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Products of float32 in float32 inside the block, also where a program allows TF32 for its activations.

    TF32 keeps 10 bits: rotations of such products are orthogonal to 1e-3 instead of 1e-6.

    Args:
        device: of the products.

    Example:
        >>> with full_float32(torch.device("cpu")):
        ...     torch.get_float32_matmul_precision()
        'highest'
    """
    allowed = device.type == "cuda" and not torch.compiler.is_compiling() and torch.backends.cuda.matmul.allow_tf32
    if allowed:
        torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        if allowed:
            torch.backends.cuda.matmul.allow_tf32 = True
