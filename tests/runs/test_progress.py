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
