"""Hyperspherical energy and angles against the plain double loop of the definition."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from orthotune.errors import ConfigError
from orthotune.rotation.cayley import cayley
from orthotune.rotation.energy import hyperspherical_energy, pairwise_angles


def _weight(rows: int = 23, columns: int = 9, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(4), dtype=torch.float64).to(dtype)


def _double_loop(W: Tensor, s: float, half_space: bool) -> float:
    points = [w / w.norm() for w in W.double()]
    points += [-p for p in points] if half_space else []
    total = 0.0
    for i, left in enumerate(points):
        for j, right in enumerate(points):
            if i != j:
                distance = float((left - right).norm())
                total += -math.log(distance) if s == 0 else distance**-s
    return total


@pytest.mark.parametrize("half_space", [False, True], ids=["full_space", "half_space"])
@pytest.mark.parametrize("s", [0, 1, 2, 0.5])
@pytest.mark.parametrize("chunk", [2048, 23, 7, 1])
def test_the_definition(s: float, half_space: bool, chunk: int) -> None:
    W = _weight()
    # 2 - 2 cos loses digits where two neurons are near: 1e-16 against squared distances of 0.1 here
    assert hyperspherical_energy(W, s, half_space, chunk) == pytest.approx(_double_loop(W, s, half_space), rel=1e-12)


def test_further_dimensions_are_flattened_and_the_input_is_left_alone() -> None:
    W = torch.randn(6, 2, 3, 2)
    before = W.clone()
    assert hyperspherical_energy(W) == hyperspherical_energy(W.flatten(1))
    assert torch.equal(W, before)
    assert torch.equal(pairwise_angles(W), pairwise_angles(W.flatten(1)))


@pytest.mark.parametrize("s", [0, 1, 2])
@pytest.mark.parametrize("half_space", [False, True])
def test_lengths_do_not_count_and_rotations_change_nothing(s: float, half_space: bool) -> None:
    W = _weight()
    Q = torch.randn(9, 9, dtype=torch.float64)
    expected = pytest.approx(hyperspherical_energy(W, s, half_space), rel=1e-12)
    assert hyperspherical_energy(W * torch.rand(23, 1, dtype=torch.float64), s, half_space) == expected
    assert hyperspherical_energy(W @ cayley(Q - Q.mT), s, half_space) == expected


def test_half_space_does_not_see_a_sign() -> None:
    W = _weight()
    signs = torch.where(torch.arange(23) % 3 == 0, -1.0, 1.0)[:, None]
    assert hyperspherical_energy(W * signs, 1, True) == pytest.approx(hyperspherical_energy(W, 1, True), rel=1e-12)
    assert hyperspherical_energy(W * signs) != pytest.approx(hyperspherical_energy(W), rel=1e-3)


@pytest.mark.parametrize("s", [1, 2])
def test_two_neurons_of_one_direction_are_infinite(s: float) -> None:
    W = torch.eye(3)[[0, 0, 1]]
    assert hyperspherical_energy(W, s) == math.inf
    assert hyperspherical_energy(W, 0) == math.inf


def test_low_precision_weights_are_measured_as_they_are() -> None:
    W = _weight(dtype=torch.bfloat16)
    assert hyperspherical_energy(W) == hyperspherical_energy(W.double())


def test_a_negative_power_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"s=-1 for the hyperspherical energy. Needed: 0, 1, 2 or another number >= 0"
    ):
        hyperspherical_energy(_weight(), s=-1)


@pytest.mark.parametrize("chunk", [2048, 7])
def test_angles(chunk: int) -> None:
    W = _weight()
    angles = pairwise_angles(W, chunk)
    assert angles.dtype == torch.float64
    torch.testing.assert_close(angles, angles.mT)
    assert not angles.diagonal().any()
    unit = W / W.norm(dim=1, keepdim=True)
    expected = torch.acos((unit @ unit.T).clamp(-1, 1)).fill_diagonal_(0)
    torch.testing.assert_close(angles, expected)
