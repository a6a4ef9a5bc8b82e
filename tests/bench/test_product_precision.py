"""Products of float32 numbers in parts: which of them a rotation may be computed with."""

from __future__ import annotations

import pytest
import torch

import product_precision as precision
from orthotune.rotation.cayley import cayley
from orthotune.rotation.packing import unpack


def test_the_kernel_s_arithmetic_is_the_cayley_map() -> None:
    generator = torch.Generator().manual_seed(0)
    Q = unpack(torch.randn(3, 28, generator=generator, dtype=torch.float64), 8)
    # The loop of the kernel ends where float32 ends.
    found = precision.cayley_as_the_kernel(Q, torch.matmul)
    torch.testing.assert_close(found, cayley(Q), rtol=0, atol=1e-6)


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize(("rounded", "bits"), [(precision.tf32, 11), (precision.bf16, 8)])
def test_parts_lose_as_many_bits_as_they_lack(rounded, bits: int, parts: int) -> None:
    x = torch.randn(4096, generator=torch.Generator().manual_seed(0))
    found = precision.parted(rounded, parts, x)
    # Half a unit in the last place of each part, one for the part's own rounding.
    assert ((sum(found) - x).abs() <= x.abs() * 2.0 ** -min(bits * parts, 24)).all()
    assert all((rounded(part) == part).all() for part in found)


@pytest.mark.parametrize("norm", [0.1, 1.0, 10.0])
def test_three_products_of_tf32_reach_float32_and_one_or_three_of_bfloat16_do_not(norm: float) -> None:
    rows = {row["precision"]: row for row in precision.errors(32, norm, 16)}
    for name in ("tf32x3", "bf16x6"):
        # Some roundings of float32, as in the product without tensor cores: 32 sums of entries of at most 1.
        assert rows[name]["orthogonality"] < 2e-6 and rows[name]["output"] < 2e-6
    assert rows["tf32"]["orthogonality"] > 1e-4 and rows["bf16x3"]["orthogonality"] > 4e-6
