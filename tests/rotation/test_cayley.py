"""The exact map is the one of the paper, and so is its derivative."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from orthotune.rotation.cayley import INVERSE_POLISH, PRODUCT_POLISH, cayley, inverse_cayley
from orthotune.rotation.measure import orthogonality_error, rotation_angles


def _skew(block_size: int, scale: float = 0.5, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(block_size)
    Q = scale * torch.randn(3, block_size, block_size, generator=generator, dtype=torch.float64)
    return (Q - Q.mT).to(dtype)


def _by_definition(Q: Tensor) -> Tensor:
    eye = torch.eye(Q.shape[-1], dtype=Q.dtype)
    return torch.linalg.solve(eye + Q, eye - Q, left=False)  # (I - Q)(I + Q)^{-1}


SIZES = [2, 3, 8, 31, INVERSE_POLISH, INVERSE_POLISH + 1, PRODUCT_POLISH, PRODUCT_POLISH + 1]


@pytest.mark.parametrize("block_size", SIZES)
def test_rotation_of_determinant_one(block_size: int) -> None:
    R = cayley(_skew(block_size, dtype=torch.float64))
    # float64: b^2 roundings of 1e-16 and room for the inverse
    assert orthogonality_error(R).max() < 1e-12
    torch.testing.assert_close(torch.linalg.det(R), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("block_size", SIZES)
def test_values_and_closed_form_backward_equal_the_definition(block_size: int) -> None:
    Q = _skew(block_size, 0.2, torch.float64).requires_grad_()
    other = Q.detach().clone().requires_grad_()
    R, expected = cayley(Q), _by_definition(other)
    torch.testing.assert_close(R, expected, rtol=0, atol=1e-13)
    weights = torch.randn(R.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    (R * weights).sum().backward()
    (expected * weights).sum().backward()
    assert Q.grad is not None and other.grad is not None
    # autograd through the inverse of a matrix that is skew at this point gives every direction, also those off the
    # skew matrices; float64 rounding of about b terms
    torch.testing.assert_close(Q.grad, other.grad, rtol=0, atol=1e-12 * other.grad.abs().max().item())


def test_first_order_is_minus_two_q() -> None:
    Q = _skew(8, 1e-6, torch.float64)
    torch.testing.assert_close(cayley(Q), torch.eye(8, dtype=torch.float64) - 2 * Q, rtol=0, atol=1e-9)


@pytest.mark.parametrize("angle", [0.1, 1.0, 3.0])
def test_a_plane_turns_by_twice_the_arc_tangent(angle: float) -> None:
    q = math.tan(angle / 2)
    R = cayley(torch.tensor([[0.0, q], [-q, 0.0]], dtype=torch.float64))
    assert rotation_angles(R).item() == pytest.approx(angle)
    assert R[1, 0].item() == pytest.approx(math.sin(angle))  # R = I - 2Q + ...: the sign of the convention


def test_zero_is_the_identity_bit_for_bit() -> None:
    for block_size in SIZES:
        assert torch.equal(cayley(torch.zeros(2, block_size, block_size)), torch.eye(block_size).expand(2, -1, -1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_raised_to_float32(dtype: torch.dtype) -> None:
    Q = _skew(8, dtype=dtype)
    R = cayley(Q)
    assert R.dtype == torch.float32
    assert torch.equal(R, cayley(Q.float()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cayley(Q.float()), R)


def test_autocast_does_not_reach_the_backward() -> None:
    grads = []
    for enabled in (False, True):
        Q = _skew(16).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            cayley(Q).square().sum(-1)[:, 0].sum().add((cayley(Q)[:, 0, 1] * 3).sum()).backward()
        grads.append(Q.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize("block_size", SIZES)
def test_inverse(block_size: int) -> None:
    Q = _skew(block_size, 0.1, torch.float64)
    torch.testing.assert_close(inverse_cayley(cayley(Q)), Q, rtol=0, atol=1e-12)


def test_half_a_turn_has_no_inverse() -> None:
    with pytest.raises(torch.linalg.LinAlgError):
        inverse_cayley(-torch.eye(2))


@pytest.mark.parametrize("norm", [1e-3, 0.03, 0.17, 0.5, 1.0, 1.6, 1.8, 4.0])
@pytest.mark.parametrize("block_size", [3, 32, PRODUCT_POLISH + 1])
def test_every_way_to_compute_it_is_the_same_map(norm: float, block_size: int) -> None:
    """From one factor to the inverse: each norm takes another number of products."""
    Q = _skew(block_size, dtype=torch.float64)
    Q = Q * norm / torch.linalg.matrix_norm(Q, 2).amax()
    R = cayley(Q.float())
    # float32 with a condition number of up to 1 + 4^2
    torch.testing.assert_close(R.double(), _by_definition(Q), rtol=0, atol=2e-6)
    assert orthogonality_error(R).max() < 5e-6
