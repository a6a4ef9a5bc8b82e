from __future__ import annotations

import math

import pytest
import torch

from orthotune.metrics.weights import layer_changes, worst_orthogonality_error


def _rotation(size: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(size, size, dtype=torch.float64)).Q


def test_a_rotation_keeps_energy_and_angles_and_an_addition_does_not() -> None:
    torch.manual_seed(0)
    weight = torch.randn(20, 12, dtype=torch.float64)
    added = weight + 0.3 * torch.randn(20, 2, dtype=torch.float64) @ torch.randn(2, 12, dtype=torch.float64)
    turned, other = layer_changes([("turned", weight, weight @ _rotation(12)), ("added", weight, added)])
    assert (turned.name, other.name) == ("turned", "added")
    # Everything is float64 here.
    assert turned.energy < 1e-12 and turned.angles < 1e-12
    assert other.energy > 1e-3 and other.angles > 1e-2


def test_large_layers_are_measured_on_a_part_of_their_neurons() -> None:
    torch.manual_seed(0)
    weight = torch.randn(50, 8)
    changed = weight.clone()
    changed[1] *= -1
    # Rows 0, 12, 24, 37, 49 of 50 are looked at: row 1 is not.
    assert layer_changes([("layer", weight, changed)], most=5)[0].angles == 0
    assert layer_changes([("layer", weight, changed)], most=50)[0].angles > 0


def test_worst_orthogonality_error() -> None:
    stretched = torch.eye(4, dtype=torch.float64)
    stretched[0, 0] = math.sqrt(1.5)
    error = worst_orthogonality_error([torch.eye(4).expand(3, 4, 4), torch.stack([_rotation(4), stretched])])
    assert error == pytest.approx(0.5)
    assert worst_orthogonality_error([]) is None
