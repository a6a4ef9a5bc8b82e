"""Both of PEFT's polynomials, term for term."""

from __future__ import annotations

import pytest
import torch

from orthotune.errors import ConfigError
from orthotune.rotation.cayley import cayley
from orthotune.rotation.neumann import coefficients, neumann

CURRENT = {1: [1], 2: [1, 2], 3: [1, 2, 2, 1], 4: [1, 2, 2, 1], 5: [1, 2, 2, 2, 1], 6: [1, 2, 2, 2, 2, 1]}
LEGACY = {1: [1], 2: [1, 2], 3: [1, 2, 2], 4: [1, 2, 2, 2], 5: [1, 2, 2, 2, 2], 6: [1, 2, 2, 2, 2, 2]}
TABLE = [(n, False, row) for n, row in CURRENT.items()] + [(n, True, row) for n, row in LEGACY.items()]


def _skew(scale: float) -> torch.Tensor:
    Q = scale * torch.randn(3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return Q - Q.mT


@pytest.mark.parametrize(("terms", "legacy", "row"), TABLE)
def test_the_table(terms: int, legacy: bool, row: list[int]) -> None:
    assert coefficients(terms, legacy) == row
    Q = _skew(0.3)
    expected = sum(factor * torch.linalg.matrix_power(Q, power) for power, factor in enumerate(row))
    # Horner against single powers, float64
    torch.testing.assert_close(neumann(Q, terms, legacy), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("legacy", [False, True])
def test_it_tends_to_the_exact_rotation_of_the_opposite_sign(legacy: bool) -> None:
    Q = _skew(0.05)
    errors = [(neumann(Q, terms, legacy) - cayley(-Q)).abs().max().item() for terms in (2, 5, 8, 12, 40)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 1e-2 and errors[-1] < 1e-12
    assert (neumann(Q, 40, legacy) - cayley(Q)).abs().max() > 0.1


def test_the_two_series_differ_by_their_last_power() -> None:
    Q = _skew(0.1)
    difference = neumann(Q, 5, legacy=True) - neumann(Q, 5)
    torch.testing.assert_close(difference, torch.linalg.matrix_power(Q, 4), rtol=0, atol=1e-14)


def test_no_terms_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_cayley_neumann_terms=0. Needed: at least 1. Use 5, PEFT's default"):
        coefficients(0)


def test_one_term_is_the_identity_and_still_has_the_shape_of_a_batch() -> None:
    assert torch.equal(neumann(_skew(0.3), 1), torch.eye(8, dtype=torch.float64).expand(3, -1, -1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_raised_to_float32(dtype: torch.dtype) -> None:
    Q = _skew(0.1).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        R = neumann(Q)
    assert R.dtype == torch.float32
    assert torch.equal(R, neumann(Q.float()))
