"""COFT's projection."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from orthotune.rotation.coft import coft_radius, project
from orthotune.rotation.packing import element_count, unpack


def _packed(block_size: int, dtype: torch.dtype = torch.float32, rows: int = 50) -> Tensor:
    """Blocks of all lengths from half to twice the usual."""
    generator = torch.Generator().manual_seed(block_size)
    lengths = torch.linspace(0.5, 2, rows)[:, None]
    return (lengths * torch.randn(rows, element_count(block_size), generator=generator)).to(dtype)


def _norm(v: Tensor, block_size: int) -> Tensor:
    return torch.linalg.matrix_norm(unpack(v.double(), block_size))


def test_radius_of_peft() -> None:
    assert coft_radius(6e-5, 9) == pytest.approx(2e-5)
    assert coft_radius(6e-5, 1) == 6e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block_size", [2, 8, 32, 256])
def test_outside_lands_on_the_surface_and_stays_there_bit_for_bit(block_size: int, dtype: torch.dtype) -> None:
    v = _packed(block_size, dtype)
    norm = _norm(v, block_size)
    radius = norm.median().item()
    once = project(v, radius)
    assert once.dtype == dtype
    # A block on the surface up to a few roundings counts as inside; the sum of n squares in turn adds sqrt(n) of them.
    eps, summed = torch.finfo(dtype).eps, torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    outside, inside = norm > radius * (1 + 9 * eps + block_size * summed), norm < radius * (1 - 1e-5)
    assert outside.any() and inside.any()
    surface = torch.full((int(outside.sum()),), radius, dtype=torch.float64)
    torch.testing.assert_close(_norm(once, block_size)[outside], surface, rtol=4 * eps + block_size * summed, atol=0)
    assert torch.equal(once[inside], v[inside])
    assert torch.equal(project(once, radius), once)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("block_size", "rows"), [(8, 400), (64, 100), (256, 30), (512, 10)])
def test_the_surface_is_reached_once_whatever_the_size(block_size: int, rows: int, dtype: torch.dtype) -> None:
    v = _packed(block_size, dtype, rows)
    for radius in (6e-5, 0.01, 0.6, 3.3):
        once = project(v, radius)
        assert torch.equal(project(once, radius), once)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_inside_stays_bit_for_bit_whatever_the_radius(dtype: torch.dtype) -> None:
    v = _packed(8, dtype)
    for radius in torch.linspace(20.0, 60.0, 100).tolist():
        assert torch.equal(project(v, radius), v)


def test_the_direction_stays() -> None:
    v = _packed(8)
    torch.testing.assert_close(
        torch.nn.functional.cosine_similarity(project(v, 0.01), v), torch.ones(50), rtol=0, atol=1e-6
    )


def test_the_gradient_is_finite_at_zero_and_passes_inside() -> None:
    v = torch.zeros(2, 28, requires_grad=True)
    project(v, 0.1).sum().backward()
    assert torch.equal(v.grad, torch.ones(2, 28))


def test_the_gradient_outside_is_tangential() -> None:
    v = _packed(8, torch.float64, rows=1).requires_grad_()
    out = project(v, 0.1)
    weights = torch.randn(28, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (out * weights).sum().backward()
    assert v.grad is not None
    # moving along v changes nothing on the sphere: float64 zero
    assert abs((v.grad * v).sum().item()) < 1e-12
    assert v.grad.abs().max() > 1e-3


def test_peft_projects_onto_the_same_ball() -> None:
    """PEFT's own formula, on the dense skew matrix."""
    v, eps = _packed(8, torch.float64, rows=9), 0.6
    Q = unpack(v, 8)
    norm = Q.flatten(1).norm(dim=1)[:, None, None]
    expected = torch.where(norm <= eps / math.sqrt(9), Q, eps / math.sqrt(9) * Q / norm)
    torch.testing.assert_close(unpack(project(v, coft_radius(eps, 9)), 8), expected)
