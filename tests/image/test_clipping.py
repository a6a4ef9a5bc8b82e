"""An image run logs the norm of its gradient before clipping, and warns where clipping acts at every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from tests.image.test_skipped_steps import at, broken
from tests.image.toy_training import options, run, tiny_trainee


@pytest.mark.parametrize("parts", [1, 3])
def test_the_norm_is_the_one_before_clipping(tmp_path: Path, parts: int) -> None:
    said: dict[str, Any] = {"steps": 2, "gradient_accumulation": parts}
    free = run(tmp_path / "free", options(max_grad_norm=0, **said), tiny_trainee())
    clipped = run(tmp_path / "clipped", options(max_grad_norm=1e-4, **said), tiny_trainee())
    # The same parameters and pictures: bit for bit.
    assert clipped.lines[0]["gradient_norm"] == free.lines[0]["gradient_norm"] > 1e-3


def test_it_is_the_norm_of_the_mean_over_the_parts(tmp_path: Path) -> None:
    trainee, norms = tiny_trainee(), list[float]()

    def look(optimizer: Any, *_: Any) -> None:
        norms.append(float(torch.stack([p.grad.norm() for p in trainee.learning().values()]).norm()))

    hook = register_optimizer_step_pre_hook(look)
    try:
        log = run(tmp_path, options(max_grad_norm=0, gradient_accumulation=3, steps=2), trainee)
    finally:
        hook.remove()
    # Norms of float32 numbers summed in another order.
    assert [line["gradient_norm"] for line in log.lines] == pytest.approx(norms, rel=1e-5)


@pytest.mark.parametrize("gradient", [False, True])
def test_a_step_that_is_left_out_has_no_norm(tmp_path: Path, gradient: bool) -> None:
    spoil = at(3, do=lambda trainee: broken(trainee, gradient))
    log = run(tmp_path, options(gradient_accumulation=2), tiny_trainee(), on_step=[spoil])
    assert [line["gradient_norm"] is None for line in log.lines] == [False, False, True, False, False, False]


def test_clipping_at_every_step_is_warned_about_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orthotune.runs.clipping.STRETCH", 3)
    heard: list[str] = []
    log = run(tmp_path / "a", options(max_grad_norm=1e-4), tiny_trainee(), say=heard.append)
    assert [line["step"] for line in log.lines if "clipping" in line] == [3]
    assert heard == [log.first("clipping")] and "max_grad_norm=0" in heard[0]
    run(tmp_path / "b", options(max_grad_norm=1e4), tiny_trainee(), say=heard.append)
    assert len(heard) == 1
