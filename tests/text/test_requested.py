"""What is asked of a text run while it trains: by files in its directory and by signals."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from orthotune.recipes import sft
from orthotune.recipes.settings import SFTSettings
from orthotune.runs.checkpoint_on_signal import Stopped


class _Asking(TrainerCallback):
    """Asks during a step."""

    def __init__(self, run: Path, step: int, *asked: str) -> None:
        self.run, self.step, self.asked = run, step, asked

    def on_step_begin(self, args: Any, state: Any, control: Any, **seen: Any) -> None:
        if state.global_step + 1 == self.step:
            for name in self.asked:
                if name.startswith("SIG"):
                    os.kill(os.getpid(), getattr(signal, name))
                else:
                    (self.run / name).touch()


@pytest.fixture
def job(model_path: Path, text_path: Path, old_path: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "model": str(model_path), "data": str(text_path), "old_data": str(old_path), "steps": 5, "batch_size": 2,
        "max_length": 32, "learning_rate": 1e-2, "block_size": 8, "eval_every": 5, "save_every": 5,
        "sample_prompts": ["one", "two"], "output": tmp_path / "run",
    }  # fmt: skip


def _run(job: dict[str, Any], *callbacks: TrainerCallback, said: list[str] | None = None, **changes: Any) -> Any:
    say = (lambda _: None) if said is None else said.append
    return sft.run(SFTSettings(**(job | changes)), say=say, callbacks=callbacks, bar=False)


def _samples(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((run / "samples.json").read_text())
    return found


def _adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize("names", [("sample-now", "save-now"), ("SIGUSR1", "SIGUSR2")])
def test_samples_and_a_checkpoint(job: dict[str, Any], tmp_path: Path, names: tuple[str, ...]) -> None:
    run, said = job["output"], list[str]()
    _run(job, _Asking(run, 2, *names), said=said)
    found = _samples(run)
    assert [(row["step"], row["prompt"]) for row in found if "step" in row] == [
        (0, "one"), (0, "two"), (2, "one"), (2, "two")
    ]  # fmt: skip
    assert [row["prompt"] for row in found if "step" not in row] == ["one", "two"]
    assert [row["text"] for row in found if row.get("step") == 0] == [row["before"] for row in found if "before" in row]
    assert (run / "checkpoints" / "checkpoint-2").is_dir() and not list(run.glob("*-now"))
    assert any("Samples of step 2" in line for line in said)
    # Asking changes no parameter.
    plain = _run(job, output=tmp_path / "plain")
    assert plain.steps == 5
    ours, theirs = _adapter(run / "adapter"), _adapter(tmp_path / "plain" / "adapter")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    card = (run / "adapter" / "README.md").read_text()
    assert card.count("one") == (tmp_path / "plain" / "adapter" / "README.md").read_text().count("one")


def test_a_model_without_samples_says_so(job: dict[str, Any]) -> None:
    said: list[str] = []
    _run(job, _Asking(job["output"], 2, "sample-now"), said=said, sample_prompts=[])
    assert any("No samples at step 2: sample_prompts is empty" in line for line in said)


def test_full_finetuning_has_no_base_to_compare_with_in_the_middle(job: dict[str, Any]) -> None:
    _run({**job, "method": "full"} | {"block_size": None}, _Asking(job["output"], 2, "sample-now"))
    assert [row["step"] for row in _samples(job["output"]) if "step" in row] == [2, 2]


def test_stop_now_is_a_stop_as_by_ctrl_c(job: dict[str, Any]) -> None:
    with pytest.raises(Stopped, match="Stopped by stop-now after step 2 of 5, which checkpoint-2 holds") as stopped:
        _run(job, _Asking(job["output"], 2, "stop-now"))
    assert stopped.value.number == signal.SIGINT and not (job["output"] / "run.json").exists()
    assert _run(job, resume="auto").steps == 5


@pytest.mark.parametrize("result", ["last", "best"])
def test_finish_now_ends_in_order_with_figures_of_that_step(job: dict[str, Any], tmp_path: Path, result: str) -> None:
    """The adapter, and the figures that the record gives of it, are those of the step after which it was asked for."""
    said: list[str] = []
    record = _run(job, _Asking(job["output"], 3, "finish-now"), said=said, result=result, schedule="constant", warmup=0)
    assert (record.steps, record.stopped_by["rule"], record.stopped_by["step"]) == (3, "finish-now", 3)
    assert any(line == "finish-now ended the training after step 3 of 5." for line in said)
    lines = [json.loads(line) for line in (job["output"] / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "new_nats" in line] == [0, 3]
    by_step = {line["step"]: line for line in lines}
    shown = record.result_step if result == "best" else 3
    assert record.gain == by_step[shown].get("gain", 0.0) and record.new_after == by_step[shown]["new_nats"]
    whole = _run(job, output=tmp_path / "short", steps=3, schedule="constant", warmup=0)
    if shown == 3:
        ours, theirs = _adapter(job["output"] / "adapter"), _adapter(tmp_path / "short" / "adapter")
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs) and record.gain == whole.gain
    said.clear()
    assert _run(job, said=said, resume="auto", result=result, schedule="constant", warmup=0).steps == 3
    assert len(said) == 1 and "finish-now" in said[0]
