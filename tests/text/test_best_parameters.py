"""The parameters of the best measurement: kept, written beside a checkpoint, read again, and put back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from orthotune.errors import AdapterFileError, RecipeError
from orthotune.text.best_parameters import BestParameters


def _model(value: float) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[0].requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return model


def test_the_best_is_kept_and_the_earliest_of_equals() -> None:
    best, model = BestParameters(), _model(0.0)
    for step, value, gain in ((0, 0.0, 0.0), (10, 1.0, 0.5), (20, 2.0, 0.5), (30, 3.0, 0.25)):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(value)
        best.see(model, step, {"gain": gain, "forgetting": 0.0})
    assert (best.step, best.net_gain) == (10, 0.5)
    best.restore(model)
    # What is frozen is not touched: it was never trained.
    assert [float(p.flatten()[0].detach()) for p in model.parameters()] == [3.0, 3.0, 1.0, 1.0]


def test_a_file_gives_every_bit_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, best = nn.Linear(3, 3).to(torch.bfloat16), BestParameters()
    best.see(model, 7, {"gain": 0.1 + 0.2})
    best.save(tmp_path)
    again, other = BestParameters(), nn.Linear(3, 3).to(torch.bfloat16)
    again.load(tmp_path)
    assert (again.step, again.net_gain) == (7, 0.1 + 0.2)
    again.restore(other)
    assert torch.equal(other.weight, model.weight) and torch.equal(other.bias, model.bias)
    again.see(other, 9, {"gain": 0.2})
    assert again.step == 7


def test_a_measurement_that_is_not_finite_is_never_best() -> None:
    best = BestParameters()
    best.see(_model(1.0), 3, {"gain": float("nan"), "forgetting": 0.0})
    assert best.step is None
    with pytest.raises(RecipeError, match="result=best.*no loss of the target domain"):
        best.require({"score": 1.0})


def test_before_the_first_measurement_there_is_no_file_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    best = BestParameters()
    best.save(tmp_path)
    best.load(tmp_path)
    assert best.step is None and not list(tmp_path.iterdir())
    (tmp_path / "best.safetensors").write_bytes(b"half of a fi")
    with pytest.raises(AdapterFileError, match="best.safetensors"):
        best.load(tmp_path)
