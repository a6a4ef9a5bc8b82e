"""Stored numbers to rotations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from orthotune.kernels.from_parameters import rotation_of
from orthotune.rotation.cayley import cayley
from orthotune.rotation.neumann import neumann
from orthotune.rotation.packing import unpack
from orthotune.rotation.spec import RotationSpec


def _stored(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (0.2 * torch.randn(4, 28, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).to(dtype)


def test_the_maps() -> None:
    v = _stored()
    assert torch.equal(rotation_of(RotationSpec(block_size=8), v), cayley(unpack(v, 8)))
    assert torch.equal(rotation_of(RotationSpec(block_size=8, map="neumann"), v), neumann(unpack(v, 8), 5))
    assert torch.equal(rotation_of(RotationSpec(block_size=8, map="neumann", terms=3), v), neumann(unpack(v, 8), 3))
    legacy = RotationSpec(block_size=8, map="neumann_legacy", terms=6)
    assert torch.equal(rotation_of(legacy, v), neumann(unpack(v, 8), 6, legacy=True))


def test_scaled_numbers_are_divided() -> None:
    v, scaled = _stored(), RotationSpec(block_size=8, scaled=True)
    assert scaled.scale == 1 / (2 * math.sqrt(7)) and RotationSpec(block_size=8).scale == 1
    torch.testing.assert_close(rotation_of(scaled, v), cayley(unpack(v / (2 * math.sqrt(7)), 8)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("rows", [1, 4])
def test_the_ball_is_measured_on_the_skew_matrix(rows: int, scaled: bool) -> None:
    # noise of 20: every block is outside, whether scaled or not
    map, v = RotationSpec(block_size=8, scaled=scaled, eps=0.3), 100 * _stored(torch.float64)[:rows]
    Q = unpack(map.within_ball(v) * map.scale, 8)
    norms = torch.linalg.matrix_norm(Q)
    torch.testing.assert_close(norms, torch.full((rows,), 0.3 / math.sqrt(rows), dtype=torch.float64))
    torch.testing.assert_close(rotation_of(map, v), cayley(Q))
    free = RotationSpec(block_size=8, scaled=scaled)
    assert torch.equal(free.within_ball(v), v)


@pytest.mark.parametrize(
    ("stored", "expected"),
    [(torch.float64, torch.float64), *((d, torch.float32) for d in (torch.float32, torch.bfloat16, torch.float16))],
)
@pytest.mark.parametrize("fields", [{}, {"map": "neumann"}, {"eps": 0.1}], ids=str)
def test_rotations_are_float32_or_better(fields: dict[str, Any], stored: torch.dtype, expected: torch.dtype) -> None:
    v, map = _stored(stored), RotationSpec(block_size=8, **fields)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        R = rotation_of(map, v)
    assert R.dtype == expected
    # up to float32's rounding of the same numbers
    limit = 1e-5 if stored == torch.float32 else 1e-2
    torch.testing.assert_close(R.double(), rotation_of(map, v.double()), rtol=0, atol=limit)


def test_several_copies_are_balls_of_their_own() -> None:
    map, v = RotationSpec(block_size=8, eps=0.3), 20 * _stored()
    copies = rotation_of(map, v.view(2, 2, 28))
    assert copies.shape == (2, 2, 8, 8)
    # float32 rounding: the products of a batch are scaled by the largest norm in it; another ball would be 1e-1 away
    for stack, alone in zip(copies, (rotation_of(map, v[:2]), rotation_of(map, v[2:])), strict=True):
        torch.testing.assert_close(stack, alone, rtol=0, atol=5e-7)
