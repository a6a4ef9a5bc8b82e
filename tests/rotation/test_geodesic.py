"""What makes a geodesic: powers that add, orthogonal everywhere, angles that scale, the short way round."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from orthotune.errors import OrthotuneError
from orthotune.rotation.cayley import cayley
from orthotune.rotation.geodesic import nearest_rotation, partial_rotation, planes, planes_of_skew
from orthotune.rotation.mean import geodesic_combination, karcher_mean, product
from orthotune.rotation.measure import orthogonality_error, rotation_angles

SIZES = (2, 3, 5, 8, 32)
STRENGTHS = (-1.5, -1.0, 0.0, 0.3, 0.5, 1.0, 1.7)
# A product of b-sized rows rounds about sqrt(b) times, 32 at most here; the figures are of the Frobenius norm.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
DTYPES = list(TOLERANCE)


def skew(b: int, scale: float = 0.4, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    A = torch.randn(3, b, b, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    return (A - A.mT).to(dtype)


def rotation2(a: float) -> Tensor:
    return torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]], dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("b", SIZES)
@pytest.mark.parametrize("scale", [1e-9, 0.4, 30.0])  # from nothing to within a degree of a half turn
def test_geodesic_facts(b: int, scale: float, dtype: torch.dtype) -> None:
    Q, limit = skew(b, scale, dtype), TOLERANCE[dtype]
    R = {t: partial_rotation(Q, t) for t in STRENGTHS}
    assert all(power.dtype is dtype for power in R.values())
    for power in R.values():
        assert orthogonality_error(power).max() < limit
    assert torch.equal(R[0.0], torch.eye(b, dtype=dtype).expand(3, b, b))
    # the Cayley map itself loses digits with the size of Q, in its own dtype
    assert (R[1.0] - cayley(Q)).abs().max() < limit * max(scale, 1)
    assert (R[-1.0] - R[1.0].mT).abs().max() < limit
    for s, t in ((0.3, 0.5), (1.0, -1.5), (0.5, 0.5)):
        assert (R[s] @ R[t] - partial_rotation(Q, s + t)).abs().max() < limit


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_angles_scale(dtype: torch.dtype) -> None:
    Q = skew(7, dtype=dtype)
    whole = rotation_angles(partial_rotation(Q, 1.0))
    for t in (-0.5, 0.25, 0.5):
        # an angle is read off with the rounding of the matrix
        assert (rotation_angles(partial_rotation(Q, t)) - abs(t) * whole).abs().max() < TOLERANCE[dtype]


@pytest.mark.parametrize("near", [1e-2, 1e-5, 1e-8])
def test_half_of_nearly_a_half_turn_is_a_quarter_the_short_way(near: float) -> None:
    q = 1 / math.tan(near / 2)  # the Cayley map's number for pi - near
    Q = torch.tensor([[0.0, -q], [q, 0.0]], dtype=torch.float64)
    quarter = partial_rotation(Q, 0.5)
    expected = (math.pi - near) / 2 * (1 if cayley(Q)[0, 1] >= 0 else -1)
    # atan of a number of the size 1 / near is exact to its own rounding
    assert abs(math.atan2(quarter[0, 1].item(), quarter[0, 0].item()) - expected) < 1e-12


@pytest.mark.parametrize("angles", [[math.pi], [math.pi] * 3, [math.pi - 1e-9, math.pi, 2.0], [3.1, -3.1, 0.0, 0.5]])
@pytest.mark.parametrize("axes", [0, 1])
def test_planes_of_any_rotation(angles: list[float], axes: int) -> None:
    size = 2 * len(angles) + axes
    blocks = [rotation2(a) for a in angles]
    V = torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(2)).double())[0]
    R = V @ torch.block_diag(*blocks, *[torch.ones(1, 1).double()] * axes) @ V.T
    found = planes(R)
    # the tie is decided by 1e-13; a plane at 1e-9 from a half turn is known to the rounding of R beside it
    assert (found.power(1.0) - R).abs().max() < 1e-12
    half = found.power(0.5)
    assert orthogonality_error(half) < 1e-12
    assert (half @ half - R).abs().max() < 1e-12
    expected = sorted((abs(math.remainder(a, 2 * math.pi)) for a in angles), reverse=True)
    assert (rotation_angles(half) - torch.tensor(expected).double() / 2).abs().max() < 1e-6  # cosines near 1 round


def test_no_reflection_and_no_stretch() -> None:
    with pytest.raises(OrthotuneError, match="reflection"):
        planes(torch.diag(torch.tensor([1.0, -1.0])))
    with pytest.raises(OrthotuneError, match="stretches by 1"):
        nearest_rotation(2 * torch.eye(3))


def test_numbers_that_are_not_finite_stay_in_their_block() -> None:
    Q = skew(4)
    Q[1, 0, 1] = math.inf
    R = partial_rotation(Q, 0.5)
    assert R[1].isnan().any() and R[[0, 2]].isfinite().all()


def test_a_series_is_stretched_in_the_log() -> None:
    Q = skew(6, 0.1)
    R = torch.eye(6).double() + 2 * Q + 2 * Q @ Q
    half = planes_of_skew(Q, R).power(0.5)
    assert (half @ half - R).abs().max() < 1e-12
    assert (planes_of_skew(Q, R).power(1.0) - R).abs().max() < 1e-12


@pytest.mark.parametrize("t", [-1.3, 0.0, 0.5, 2.0])
@pytest.mark.parametrize("scale", [0.0, 1e-9, 0.5, 20.0])
def test_gradient_is_the_derivative(t: float, scale: float) -> None:
    Q = skew(4, scale)
    Q[1] = torch.block_diag(*[torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).double() * scale] * 2)  # equal angles

    def power(v: Tensor) -> Tensor:
        return partial_rotation(v - v.mT, t)

    # The derivative falls with the square of Q's size: steps in proportion to it.
    eps = 1e-6 * max(1.0, scale)
    assert torch.autograd.gradcheck(power, (Q.triu().requires_grad_(),), eps=eps, atol=1e-6)


def test_the_mean_is_the_mean() -> None:
    rotations = torch.stack([cayley(skew(5, 0.2, seed=seed)) for seed in range(3)])
    weights = [0.5, 0.2, 0.3]
    mean = karcher_mean(rotations, weights)
    pulls = [w * planes(mean.mT @ R).logarithm() for w, R in zip(weights, rotations, strict=True)]
    assert torch.stack(pulls).sum(0).abs().max() < 1e-12
    # turning all turns the mean; their order is nothing to it
    V = cayley(skew(5, 0.7, seed=9))
    assert (karcher_mean(V @ rotations, weights) - V @ mean).abs().max() < 1e-11
    assert (karcher_mean(rotations.flip(0), weights[::-1]) - mean).abs().max() < 1e-11


def test_combinations_agree_where_rotations_commute() -> None:
    Q = skew(5, 0.2)
    A, B = partial_rotation(Q, 1.0), partial_rotation(Q, 0.6)
    for weights in ([0.7, 0.3], [1.0, 1.0], [1.0, -0.5], [0.0, 2.0], [0.0, 0.0]):
        expected = partial_rotation(Q, weights[0] + 0.6 * weights[1])
        assert (geodesic_combination(torch.stack([A, B]), weights) - expected).abs().max() < 1e-11
        assert (product(torch.stack([A, B]), weights) - expected).abs().max() < 1e-11


def test_no_mean_of_opposite_rotations() -> None:
    thirds = [2 * math.pi * k / 3 for k in range(3)]
    R = torch.stack([rotation2(a) for a in thirds])
    found = karcher_mean(R, [1, 1, 1])  # three stationary points; one of them, and a rotation
    assert orthogonality_error(found) < 1e-12
