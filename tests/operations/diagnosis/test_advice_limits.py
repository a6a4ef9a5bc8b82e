"""The limits of warnings are where their comments say that they are."""

from __future__ import annotations

import math

import pytest
import torch

from orthotune.operations.diagnosis.advice import ORTHOGONALITY, advise
from orthotune.operations.diagnosis.rotation_facts import rotation_facts
from orthotune.rotation.cayley import cayley
from orthotune.rotation.neumann import neumann
from orthotune.rotation.spec import RotationSpec


def _plane(q: float, *, series: bool) -> list:
    Q = torch.tensor([[[0.0, q], [-q, 0.0]]], dtype=torch.float64)
    R = neumann(Q) if series else cayley(Q)
    return [rotation_facts(R, torch.tensor([[q]]), RotationSpec(map="neumann" if series else "exact"), layer="q")]


@pytest.mark.parametrize("q", [0.1, 0.27, 0.5, 0.9])
def test_a_plane_of_the_series_keeps_one_minus_the_fourth_power_of_its_length(q: float) -> None:
    Q = torch.tensor([[0.0, q], [-q, 0.0]], dtype=torch.float64)
    lengths = torch.linalg.svdvals(neumann(Q))
    torch.testing.assert_close(lengths, torch.full_like(lengths, 1 - q**4))
    (facts,) = _plane(q, series=True)
    assert facts.orthogonality_error == pytest.approx(math.sqrt(2) * (1 - (1 - q**4) ** 2), rel=1e-6)


def test_the_series_is_warned_of_from_half_a_percent_of_a_length() -> None:
    limit = 0.005**0.25
    assert math.sqrt(2) * (1 - (1 - limit**4) ** 2) == pytest.approx(ORTHOGONALITY, rel=0.02)
    # alone in its block such a plane turns far, which is another warning
    below, above = (str(advise(_plane(limit * part, series=True))) for part in (0.98, 1.02))
    assert "near divergence" not in below and "near divergence" in above


def test_an_exact_rotation_is_never_warned_of_for_its_map() -> None:
    assert not advise(_plane(0.2, series=False))
    (found,) = advise(_plane(math.tan(0.46 / 2), series=False))
    assert "too high for this block size" in found.warning
    assert not advise(_plane(math.tan(0.44 / 2), series=False))


def test_what_changes_no_weight_of_half_precision_does_nothing() -> None:
    weight = torch.ones(64, dtype=torch.bfloat16)
    still = weight.float() * (1 + 1e-5)
    assert torch.equal(still.bfloat16(), weight)
    (found,) = advise(_plane(0.4e-5, series=False))
    assert "does nothing" in found.warning and not advise(_plane(0.6e-5, series=False))
