"""What is read off a rotation."""

from __future__ import annotations

import math

import pytest
import torch

from orthotune.rotation.measure import distance_from_identity, orthogonality_error, rotation_angles


def _turn(*angles: float, rest: int = 0) -> torch.Tensor:
    planes = [
        torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]], dtype=torch.float64) for a in angles
    ]
    R = torch.block_diag(*planes, torch.eye(rest, dtype=torch.float64)) if rest else torch.block_diag(*planes)
    basis = torch.linalg.qr(torch.randn(R.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    return basis @ R @ basis.mT


def test_angles_come_largest_first_once_for_each_plane() -> None:
    angles = rotation_angles(_turn(0.3, 2.9, 1.1))
    torch.testing.assert_close(angles, torch.tensor([2.9, 1.1, 0.3], dtype=torch.float64))


def test_an_odd_size_leaves_an_axis_out() -> None:
    angles = rotation_angles(_turn(0.3, -2.0, rest=1))
    torch.testing.assert_close(angles, torch.tensor([2.0, 0.3], dtype=torch.float64))


def test_planes_at_rest_and_half_turns() -> None:
    # the angle of an eigenvalue near 1 or -1 is known to the root of float64's rounding at worst
    torch.testing.assert_close(
        rotation_angles(_turn(math.pi, 0.0)), torch.tensor([math.pi, 0.0], dtype=torch.float64), rtol=0, atol=1e-7
    )


def test_batches() -> None:
    R = torch.stack([_turn(0.3, 1.0), _turn(0.2, 0.1)])
    torch.testing.assert_close(rotation_angles(R), torch.tensor([[1.0, 0.3], [0.2, 0.1]], dtype=torch.float64))
    assert rotation_angles(R[:, None]).shape == (2, 1, 2)


def test_orthogonality_error_is_the_frobenius_norm_of_the_defect() -> None:
    R = torch.stack([torch.eye(3), 2 * torch.eye(3)])
    torch.testing.assert_close(orthogonality_error(R), torch.tensor([0, 3 * math.sqrt(3)], dtype=torch.float64))
    assert orthogonality_error(_turn(0.4, 1.0)) < 1e-14


def test_distance_from_identity() -> None:
    # |R - I| of one plane: 2 sqrt(2) sin(angle / 2)
    assert distance_from_identity(_turn(1.0)).item() == pytest.approx(2 * math.sqrt(2) * math.sin(0.5))
