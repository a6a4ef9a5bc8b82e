from __future__ import annotations

import pytest
import torch

from orthotune.errors import DataError
from orthotune.metrics.energy import measure_energy
from orthotune.metrics.registry import REGISTRY, measure


def test_two_layers_by_hand() -> None:
    opposite, square = torch.tensor([[1.0, 0.0], [-2.0, 0.0]]), torch.eye(2)
    measured = measure_energy([("a", opposite, square), ("b", square, square)])
    # two ordered pairs at distance 2 give 2 / 2, at distance sqrt 2 they give 2 / sqrt 2
    right = 2**0.5
    assert measured.rows[0] == {
        "name": "a", "neurons": 2, "before": 1.0, "after": pytest.approx(right), "change": pytest.approx(right - 1)
    }  # fmt: skip
    assert measured.rows[1]["change"] == 0
    assert measured.summary == pytest.approx(
        {"before": 1 + right, "after": 2 * right, "change": (right - 1) / (1 + right)}
    )


def test_a_rotation_changes_nothing_and_an_added_matrix_does() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 7, generator=generator).double()
    rotation = torch.linalg.qr(torch.randn(7, 7, generator=generator).double()).Q
    change = 0.3 * torch.randn(12, 7, generator=generator)
    turned, added = measure_energy([("t", weight, weight @ rotation), ("l", weight, weight + change)]).rows
    assert turned["change"] < 1e-12  # float64
    assert added["change"] > 1e-3


def test_nothing_trained_is_an_error() -> None:
    with pytest.raises(DataError, match="no layer that was trained"):
        measure_energy([])


def test_every_measure_of_the_roster_can_be_imported() -> None:
    assert all(callable(measure(name).function) for name in REGISTRY)
    with pytest.raises(ValueError, match="Did you mean canny?"):
        measure("cany")
