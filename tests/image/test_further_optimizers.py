"""Optimizers beside AdamW: a resumed run is the run that was never killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from orthotune.errors import RecipeError
from orthotune.image.loop.optimizer import PACKAGES, check_optimizer, make_optimizer
from tests.image.toy_training import options, run, tiny_trainee


@pytest.mark.parametrize("name", ["adafactor", "prodigy", "schedule-free"])
def test_a_resumed_run_is_the_run_that_was_never_killed(name: Any, tmp_path: Path) -> None:
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name][0])
    fields: dict[str, Any] = {"optimizer": name, "steps": 4, "schedule": "constant", "warmup": 0}
    fields |= {"learning_rate": 1.0, "optimizer_options": {"d0": 1e-3}} if name == "prodigy" else {}
    straight, again = tiny_trainee(), tiny_trainee()
    before = {key: value.detach().clone() for key, value in straight.learning().items()}
    run(tmp_path, options(**fields), straight)
    run(tmp_path, options(**fields), again, tmp_path / "checkpoints" / "checkpoint-2")
    for key, value in straight.learning().items():
        assert torch.equal(value, again.learning()[key]), key
    assert any(not torch.equal(value, before[key]) for key, value in straight.learning().items())


@pytest.mark.parametrize("name", ["prodigy", "schedule-free"])
def test_an_optimizer_that_is_not_installed_names_its_package(name: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, name, ("no_such_module_here", *PACKAGES[name][1:]))
    with pytest.raises(RecipeError, match=f"optimizer={name}. Found: no no_such_module_here here.*pip install"):
        check_optimizer(name)


def test_an_estimated_rate_is_one_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PACKAGES, "prodigy", ("torch.optim", "SGD", "torch"))
    said = options(optimizer="prodigy", layer_rates={"to_q": 0.5})
    with pytest.raises(RecipeError, match="learning rates that differ between parameters"):
        make_optimizer(tiny_trainee().learning(), said)
