from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState

from orthotune.runs.metrics_log import MetricsLog
from orthotune.runs.progress import ProgressBar


@pytest.mark.parametrize("visible", [True, False])
def test_the_newest_losses_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str], visible: bool) -> None:
    log = MetricsLog(tmp_path / "m.jsonl")
    bar = ProgressBar(log, "oft", visible)
    state = TrainerState(global_step=0, max_steps=4, is_world_process_zero=True)
    seen: dict[str, Any] = {"args": None, "state": state, "control": TrainerControl()}
    bar.on_train_begin(**seen)
    log.append({"step": 0, "seconds": 0.0, "new_nats": 3.25})
    log.append({"step": 2, "seconds": 1.0, "train_loss": 2.5})
    state.global_step = 2
    bar.on_log(**seen)
    bar.on_train_end(**seen)
    bar.close()
    shown = capsys.readouterr()
    assert shown.out == ""
    for words in ("oft", "2/4", "loss 2.500", "new 3.250"):
        assert (words in shown.err) == visible
    assert "old" not in shown.err


def test_gain_and_forgetting_fit_into_a_narrow_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    log = MetricsLog(tmp_path / "m.jsonl")
    bar = ProgressBar(log, "oft")
    state = TrainerState(global_step=0, max_steps=200, is_world_process_zero=True)
    seen: dict[str, Any] = {"args": None, "state": state, "control": TrainerControl()}
    bar.on_train_begin(**seen)
    log.append({"step": 0, "new_nats": 3.25, "old_nats": 2.0, "gain": 0.0, "forgetting": 0.0})
    log.append({"step": 40, "train_loss": 2.5, "new_nats": 3.0, "old_nats": 1.98, "gain": 0.25, "forgetting": -0.02})
    state.global_step = 40
    bar.on_log(**seen)
    bar.on_train_end(**seen)
    shown = capsys.readouterr().err
    assert "40/200" in shown and "gain +0.250  forgetting -0.020  loss 2.500" in shown
