"""The diagnosis of a step stands in that step's line of the metrics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import TrainerControl, TrainerState, TrainingArguments

from orthotune import OFTConfig, get_peft_model
from orthotune.recipes import sft
from orthotune.recipes.settings import SFTSettings
from orthotune.runs.metrics_log import MetricsLog, read_lines
from orthotune.text.diagnosis_log import DiagnosisLog


def test_what_is_attached_joins_its_line_or_gets_one(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "m.jsonl")
    log.attach(1, {"diagnosis": 1})
    log.append({"step": 1, "train_loss": 2.0})
    log.attach(2, {"diagnosis": 2})
    log.append({"step": 3})
    log.attach(4, {"diagnosis": 4})
    log.flush()
    log.flush()
    assert [line["step"] for line in log.lines] == [1, 2, 3, 4]
    assert log.lines[0] == {"step": 1, "diagnosis": 1, "train_loss": 2.0}
    assert read_lines(tmp_path / "m.jsonl") == log.lines


def test_a_run_records_its_rotations_its_gradients_and_its_drift(
    text_path: Path, old_path: Path, tmp_path: Path
) -> None:
    """The built-in model and its texts, evaluated on few: all that are held out take most of a minute."""
    few = {"eval_data": str(text_path), "old_data": str(old_path)}
    settings = SFTSettings(**few, steps=4, eval_every=2, max_length=32, batch_size=2, output=tmp_path / "run")
    record = sft.run(settings, say=lambda _: None, bar=False)
    lines = {line["step"]: line for line in read_lines(tmp_path / "run/metrics.jsonl")}
    assert sorted(lines) == [0, 1, 2, 3, 4]
    found = lines[4]["diagnosis"]
    assert found["angle_max"] > found["angle_mean"] > 0 and found["gradient_norm"] > 0
    assert "diagnosis" not in lines[3]
    assert record.drift is not None and record.drift > 0
    assert json.loads((tmp_path / "run/run.json").read_text())["drift"] == record.drift


@pytest.mark.parametrize(("rate", "told"), [(0.0, False), (1e-9, True)])
def test_a_rate_of_zero_is_no_fault_of_the_adapter(rate: float, told: bool, tmp_path: Path) -> None:
    said: list[str] = []
    log = DiagnosisLog(MetricsLog(tmp_path / "m.jsonl"), 1, said.append)
    model = get_peft_model(nn.Sequential(nn.Linear(4, 4)), OFTConfig(oft_block_size=2, target_modules=["0"]))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=rate)
    args, state = TrainingArguments(output_dir=str(tmp_path), report_to="none"), TrainerState(max_steps=9)
    log.on_train_begin(args, state, TrainerControl(), model=model)
    for state.global_step in range(3):
        log.on_pre_optimizer_step(args, state, TrainerControl(), model=model, optimizer=optimizer)
    assert bool(said) == told and all("does nothing" in line for line in said)
