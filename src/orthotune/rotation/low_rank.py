"""The best low-rank approximation of a weight's change in the Frobenius norm, by the singular value decomposition."""

from __future__ import annotations

import torch
from torch import Tensor

from orthotune.errors import ConfigError


def check_sizes(rank: int | None, error: float | None) -> None:
    """Refuse bounds of an approximation that no matrix could keep, before anything is computed.

    Args:
        rank: as for :func:`low_rank`.
        error: as for :func:`low_rank`.

    Raises:
        ConfigError: neither is given, or one is out of its range.

    Example:
        >>> check_sizes(16, error=0.05)
    """
    if rank is None and error is None:
        raise ConfigError("a low rank", needed="a rank or an error", do="Pass --rank or --error")
    if rank is not None and rank < 1:
        raise ConfigError(f"--rank {rank}", needed="at least 1")
    if error is not None and not 0 <= error < 1:
        raise ConfigError(
            f"--error {error:g}", needed="a relative error from 0 to below 1: at 0 nothing is lost, at 1 all of it"
        )


def low_rank(matrix: Tensor, rank: int | None = None, error: float | None = None) -> tuple[Tensor, Tensor, float]:
    """``B`` and ``A`` with ``B A`` close to ``matrix``, and the relative error ``‖matrix - B A‖ / ‖matrix‖``.

    Args:
        matrix: ``(out, in)``, float32 or float64.
        rank: largest number of singular values.
        error: keep the fewest singular values with a relative error of at most this; ``rank`` takes precedence.

    Shapes: ``B`` ``(out, r)``, ``A`` ``(r, in)``; ``r`` is at least 1. The error is that of the returned factors.

    Raises:
        ConfigError: neither ``rank`` nor ``error`` is given, or one is out of its range.

    Example:
        >>> B, A, error = low_rank(torch.diag(torch.tensor([3.0, 4.0])), rank=1)
        >>> (B @ A).round(decimals=4).tolist(), round(error, 4)
        ([[0.0, 0.0], [0.0, 4.0]], 0.6)
        >>> low_rank(torch.rand(8, 12), error=0.0)[0].shape
        torch.Size([8, 8])
    """
    check_sizes(rank, error)
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    total = S.double().square().sum()
    kept = S.numel()
    if error is not None:
        # left[r]: squared error with r singular values; the smallest r whose error is small enough is taken
        left = torch.cat([total.view(1), (total - S.double().square().cumsum(0)).clamp(min=0)])
        left[-1] = 0  # all of them, whatever the sums round to
        kept = int((left <= error**2 * total).nonzero()[0]) if total > 0 else 1
    kept = max(min(kept, rank or kept), 1)
    root = S[:kept].sqrt()
    B, A = U[:, :kept] * root, root.unsqueeze(1) * Vh[:kept]
    off = torch.linalg.matrix_norm(matrix - B @ A) / torch.linalg.matrix_norm(matrix) if total > 0 else total
    return B.contiguous(), A.contiguous(), float(off)


def lora_factors(change: Tensor, rank: int | None = None, error: float | None = None) -> tuple[Tensor, Tensor, float]:
    """The factors of a LoRA for the change of a weight, and the relative error of their product.

    The scale of the LoRA is 1: ``W + up down`` is the approximated weight.

    Args:
        change: ``(out, in, *kernel)``, any float dtype; the factors are float32.
        rank: as for :func:`low_rank`.
        error: as for :func:`low_rank`.

    Returns:
        ``down`` ``(r, in, *kernel)``, ``up`` ``(out, r, 1...)`` with one dimension of size 1 for each of the kernel,
        and the relative error in the Frobenius norm.

    Raises:
        ConfigError: as for :func:`low_rank`.

    Source:
        LoRA, arXiv:2106.09685, section 4.1; for a convolution the second factor is a 1x1 convolution, as in PEFT.

    Example:
        >>> down, up, error = lora_factors(torch.ones(4, 2, 3, 3), rank=1)
        >>> tuple(down.shape), tuple(up.shape), round(error, 4)
        ((1, 2, 3, 3), (4, 1, 1, 1), 0.0)
    """
    B, A, off = low_rank(change.flatten(1).float(), rank, error)
    kernel = change.shape[2:]
    return A.view(A.shape[0], change.shape[1], *kernel), B.view(*B.shape, *(1 for _ in kernel)), off
