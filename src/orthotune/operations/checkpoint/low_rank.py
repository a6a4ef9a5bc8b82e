"""The best low-rank approximation of a matrix in the Frobenius norm, by the singular value decomposition."""

from __future__ import annotations

import torch
from torch import Tensor

from orthotune.errors import ConfigError


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
    """
    if rank is None and error is None:
        raise ConfigError("a low rank", needed="a rank or an error", do="Pass --rank or --error")
    if rank is not None and rank < 1:
        raise ConfigError(f"--rank {rank}", needed="at least 1")
    if error is not None and not 0 <= error < 1:
        raise ConfigError(f"--error {error}", needed="a relative error from 0 to below 1")
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    total = S.double().square().sum()
    kept = S.numel()
    if error is not None:
        # left[r]: squared error with r singular values; the smallest r whose error is small enough is taken
        left = torch.cat([total.view(1), (total - S.double().square().cumsum(0)).clamp(min=0)])
        kept = int((left <= error**2 * total).nonzero()[0]) if total > 0 else 1
    kept = max(min(kept, rank or kept), 1)
    root = S[:kept].sqrt()
    B, A = U[:, :kept] * root, root.unsqueeze(1) * Vh[:kept]
    off = torch.linalg.matrix_norm(matrix - B @ A) / torch.linalg.matrix_norm(matrix) if total > 0 else total
    return B.contiguous(), A.contiguous(), float(off)
