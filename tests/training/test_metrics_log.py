from __future__ import annotations

from pathlib import Path

import pytest

from orthotune.training.metrics_log import MetricsLog, read_lines


def test_resuming_drops_what_lies_beyond_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for step in range(5):
        log.append({"step": step, "seconds": float(step)})
    with path.open("a") as file:
        file.write('{"step": 5, "sec')
    assert [line["step"] for line in read_lines(path)] == [0, 1, 2, 3, 4]
    resumed = MetricsLog(path, from_step=2)
    resumed.append({"step": 3, "seconds": 9.0})
    assert [line["step"] for line in read_lines(path)] == [0, 1, 2, 3]
    assert resumed.last("seconds") == 9.0
    assert MetricsLog(path).lines == [] and read_lines(path) == []


def test_outcome(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "m.jsonl")
    log.append({"step": 0, "new_nats": 3.0})
    log.append({"step": 1, "train_loss": 2.0})
    log.append({"step": 2, "new_nats": 2.5})
    outcome = log.outcome()
    assert (outcome["new_before"], outcome["new_after"], outcome["gain"]) == (3.0, 2.5, 0.5)
    assert outcome["forgetting"] is None and outcome["old_before"] is None
    log.append({"step": 3, "old_nats": 1.0})
    log.append({"step": 4, "old_nats": 1.25})
    assert log.outcome()["forgetting"] == pytest.approx(0.25)
