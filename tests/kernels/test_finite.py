"""NaN and infinity are found wherever they are; large finite numbers are not taken for them."""

from __future__ import annotations

import pytest
import torch

from orthotune.kernels.finite import all_finite


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_finite(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    assert all_finite(torch.tensor([largest, largest, 1.0], dtype=dtype))  # the sum overflows
    assert all_finite(torch.randn(3, 5).to(dtype).mT) and all_finite(torch.empty(0, dtype=dtype))
    for odd in (float("nan"), float("inf"), -float("inf")):
        values = torch.ones(3, 70, dtype=dtype)
        values[1, 33] = odd
        assert not all_finite(values)
    assert not all_finite(torch.tensor([float("inf"), 1.0, -float("inf")], dtype=dtype))
