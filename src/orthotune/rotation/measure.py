"""Measurements of a rotation: its orthogonality error, and the angles of its planes."""

from __future__ import annotations

import torch
from torch import Tensor


def orthogonality_error(R: Tensor) -> Tensor:
    """Frobenius norm of ``R R^T - I`` for each block; 0 for a rotation.

    Shapes: ``(..., b, b)`` -> ``(...)``, float64 inside so that the measure adds no rounding of its own.

    Example:
        >>> orthogonality_error(torch.eye(3)).item()
        0.0
    """
    R = R.double()
    return torch.linalg.matrix_norm(R @ R.mT - torch.eye(R.shape[-1], dtype=R.dtype, device=R.device))


def rotation_angles(R: Tensor) -> Tensor:
    """Angles of the planes that ``R`` rotates, in radians from 0 to pi, largest first.

    Shapes: ``(..., b, b)`` -> ``(..., b // 2)``; an odd ``b`` leaves one axis at rest, which is not listed.

    Example:
        >>> rotation_angles(torch.tensor([[0.0, -1.0], [1.0, 0.0]]))
        tensor([1.5708], dtype=torch.float64)
    """
    angles = torch.linalg.eigvals(R.double()).angle().abs()
    # Eigenvalues come in conjugate pairs; sorted by angle, every second one is the angle of a plane.
    return angles.sort(dim=-1, descending=True).values[..., : R.shape[-1] // 2 * 2 : 2]


def distance_from_identity(R: Tensor) -> Tensor:
    """Frobenius norm of ``R - I`` for each block.

    Shapes: ``(..., b, b)`` -> ``(...)``.
    """
    return torch.linalg.matrix_norm(R - torch.eye(R.shape[-1], dtype=R.dtype, device=R.device))
