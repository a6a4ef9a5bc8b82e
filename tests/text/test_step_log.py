from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState

from orthotune.metrics.text_loss import TokenRow, mean_loss
from orthotune.runs.metrics_log import MetricsLog
from orthotune.text.step_log import StepLog, domain_losses
from tests.support.tiny_text import make_model

ROWS = {"new": [TokenRow([3, 4, 5], [3, 4, 5])], "old": [TokenRow([6, 7], [6, 7])]}


def _pass(callback: StepLog, model: Any, first: int, last: int) -> None:
    state = TrainerState(global_step=first, max_steps=7, is_world_process_zero=True)
    seen: dict[str, Any] = {"model": model, "control": TrainerControl(), "state": state, "args": None}
    callback.on_train_begin(**seen)
    for state.global_step in range(first + 1, last + 1):
        callback.on_step_end(**seen)
        callback.on_log(**seen, logs={"loss": 1.0, "learning_rate": 0.1})
    callback.on_log(**seen, logs={"train_runtime": 3.0})


def test_domains_are_measured_before_during_and_after(tmp_path: Path) -> None:
    model, log = make_model(), MetricsLog(tmp_path / "m.jsonl")
    _pass(StepLog(log, [domain_losses(ROWS)], every=3), model, 0, 7)
    assert [line["step"] for line in log.lines] == list(range(8))
    assert [line["step"] for line in log.lines if "new_nats" in line] == [0, 3, 6, 7]
    assert log.lines[3]["old_nats"] == mean_loss(model, ROWS["old"]).nats


def test_a_resumed_run_goes_on_counting(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "m.jsonl")
    log.append({"step": 5, "seconds": 1000.0})
    _pass(StepLog(log, [domain_losses(ROWS)], every=3), make_model(), 5, 7)
    assert [line["step"] for line in log.lines] == [5, 6, 7]
    assert all(line["seconds"] >= 1000 for line in log.lines)


def test_measuring_is_not_counted_as_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("orthotune.text.step_log.time.monotonic", lambda: clock[0])

    def slow(model: Any, rows: Any) -> Any:
        clock[0] += 50.0
        return mean_loss(model, rows)

    monkeypatch.setattr("orthotune.text.step_log.mean_loss", slow)
    log = MetricsLog(tmp_path / "m.jsonl")
    _pass(StepLog(log, [domain_losses(ROWS)], every=3), make_model(), 0, 7)
    assert log.last("seconds") == 0.0 and clock[0] == 400.0


@pytest.mark.parametrize(("first", "steps"), [(0, [0, 7]), (5, [7])])
def test_the_ends_are_measured_before_and_after_alone(tmp_path: Path, first: int, steps: list[int]) -> None:
    log = MetricsLog(tmp_path / "m.jsonl")
    ends = [lambda model: {"answers": 0.5}]
    _pass(StepLog(log, [domain_losses(ROWS)], every=3, ends=ends), make_model(), first, 7)
    assert [line["step"] for line in log.lines if "answers" in line] == steps
    assert all("new_nats" in line for line in log.lines if "answers" in line)
