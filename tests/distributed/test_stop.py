"""A rule ends a run in all of its processes at the same step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.jobs import STOPPING
from tests.distributed.test_training import lines, told

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", STOPPING)
def test_all_processes_stop_together(runs: Path, name: str) -> None:
    first, second = told(runs, name, 0), told(runs, name, 1)
    assert first["steps"] == second["steps"] == 2 and not second["said"]
    assert any("stop_when.gain" in words and "after step 2 of 6" in words for words in first["said"])
    record = json.loads((runs / name / "run.json").read_text())
    assert record["stopped_by"]["rule"] == "gain" and record["stopped_by"]["gain"] == record["gain"] > 0
    assert [line["step"] for line in lines(runs / name)] == [0, 1, 2]
    assert record["result_step"] == (2 if STOPPING[name].get("result") == "best" else None)


def test_the_best_parameters_are_those_of_the_shared_run(runs: Path) -> None:
    adapter, saved = (
        load_file(runs / "stop-ddp" / folder / "adapter_model.safetensors")
        for folder in ("adapter", "checkpoints/checkpoint-2")
    )
    assert all(torch.equal(value, saved[name]) for name, value in adapter.items())
    assert (runs / "stop-ddp" / "checkpoints" / "checkpoint-2" / "best.safetensors").is_file()
