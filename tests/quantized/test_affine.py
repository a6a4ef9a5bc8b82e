"""Integer grids with a zero point: every number is as near as the grid allows, and no code leaves its range."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from orthotune.quantized.affine import fit, rounding

WEIGHTS: dict[str, Tensor] = {
    "normal": torch.randn(40, 96, generator=torch.Generator().manual_seed(0)),
    # Numbers whose zero point and largest code are both rounded up, which leads one code past the end.
    "halves": torch.tensor([[-7.5, 7.5, 0.0, 1.0] * 24, [-1.5, 13.5, 0.2, 4.0] * 24]),
    "positive": torch.rand(5, 96, generator=torch.Generator().manual_seed(1)) + 3,
    "negative": -torch.rand(5, 96, generator=torch.Generator().manual_seed(2)) - 3,
    "one outlier": torch.eye(5, 96) * 50 + 0.01,
    "zero": torch.zeros(3, 96),
    # Scales below float16's smallest normal number.
    "tiny": torch.randn(40, 96, generator=torch.Generator().manual_seed(3)) * 1e-4,
}


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("name", WEIGHTS)
def test_numbers_are_as_near_as_the_grid_allows(name: str, bits: int, dtype: torch.dtype, symmetric: bool) -> None:
    weight, group = WEIGHTS[name], 32
    codes, zeros, scales = fit(weight, bits, group, dtype, symmetric)
    assert scales.dtype == dtype and scales.shape == zeros.shape == (len(weight), 3)
    for found in (codes, zeros):
        assert found.min() >= 0 and found.max() <= 2**bits - 1
    found = (codes - zeros.repeat_interleave(group, 1)) * scales.repeat_interleave(group, 1)
    # The product in the scale's dtype is what a kernel computes.
    assert ((found.float() - weight).abs() <= rounding(weight, bits, group, dtype, symmetric)).all()
    assert not found.isnan().any()


def test_the_last_group_may_be_short() -> None:
    weight = WEIGHTS["normal"][:, :70]
    codes, zeros, scales = fit(weight, 4, 32, torch.float32)
    assert codes.shape == (40, 70) and scales.shape == (40, 3)
    found = (codes - zeros.repeat_interleave(32, 1)[:, :70]) * scales.repeat_interleave(32, 1)[:, :70]
    assert ((found - weight).abs() <= rounding(weight, 4, 32, torch.float32)).all()
