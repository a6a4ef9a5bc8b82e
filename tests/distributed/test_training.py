"""A recipe shared by two processes ends as in one: the same losses, the same file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from orthotune.runs.checkpoint_manifest import check
from tests.distributed.jobs import JOBS
from tests.support.kept_results import keep_result

pytestmark = pytest.mark.slow

SHARED = [name for name in JOBS if name != "none"]
#: Sums over the examples of a step are taken in another order, which moves a loss by parts of 1e-7.
CURVE = 1e-5
#: Adam divides by the size of the gradient, so that what rounding does to a small gradient shows in the parameter:
#: 8e-8 was measured, of numbers up to 0.03.
NUMBERS = 1e-6


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def told(runs: Path, name: str, process: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((runs / f"{name}-{process}.json").read_text())
    return found


@pytest.mark.parametrize("name", SHARED)
def test_the_loss_curve_is_that_of_one_process(runs: Path, name: str) -> None:
    alone, shared = lines(runs / "none"), lines(runs / name)
    assert [line["step"] for line in shared] == [line["step"] for line in alone] == list(range(7))
    for key in ("train_loss", "old_nats", "learning_rate"):
        expected = [line[key] for line in alone if key in line]
        assert [line[key] for line in shared if key in line] == pytest.approx(expected, rel=CURVE)
    assert alone[6]["train_loss"] < alone[1]["train_loss"]


@pytest.mark.parametrize("name", SHARED)
def test_the_saved_adapter_is_that_of_one_process(runs: Path, name: str) -> None:
    alone, shared = (load_file(runs / run / "adapter" / "adapter_model.safetensors") for run in ("none", name))
    assert {key: (v.shape, v.dtype) for key, v in alone.items()} == {k: (v.shape, v.dtype) for k, v in shared.items()}
    apart = max(float((alone[key] - shared[key]).abs().max()) for key in alone)
    largest = max(float(value.abs().max()) for value in alone.values())
    losses = [[line["train_loss"] for line in lines(runs / run) if "train_loss" in line] for run in ("none", name)]
    keep_result(f"two-processes-{name}", {"losses": losses, "numbers apart": apart, "numbers up to": largest})
    assert apart < NUMBERS
    configs = [json.loads((runs / run / "adapter" / "adapter_config.json").read_text()) for run in ("none", name)]
    assert configs[0] == configs[1]
    assert {path.name for path in (runs / name / "adapter").iterdir()} == {
        path.name for path in (runs / "none" / "adapter").iterdir()
    }


@pytest.mark.parametrize("name", SHARED)
def test_one_process_speaks_and_writes_and_all_know_the_result(runs: Path, name: str) -> None:
    first, second = told(runs, name, 0), told(runs, name, 1)
    assert first["said"] and not second["said"]
    assert {**first, "said": []} == second
    record, alone = (json.loads((runs / run / "run.json").read_text()) for run in (name, "none"))
    assert record["drift"] == first["drift"] == pytest.approx(alone["drift"], rel=1e-3)
    assert record["trainable_parameters"] == alone["trainable_parameters"]
    assert record["weights"]["orthogonality_error"] < 5e-6
    # relative 1e-9 in float32: nothing but rounding, as in one process
    assert record["weights"]["energy_change"] < 1e-6 and record["weights"]["angle_change"] < 1e-5
    assert not list((runs / name).glob(".*"))


def test_a_shared_run_goes_on_from_its_checkpoint(runs: Path) -> None:
    whole, resumed = (load_file(runs / name / "adapter" / "adapter_model.safetensors") for name in ("fsdp2", "resumed"))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    newest = runs / "resumed" / "checkpoints" / "checkpoint-6"
    assert check(newest) == 6
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in newest.iterdir()}


def test_a_checkpoint_holds_the_adapter_and_no_layer_of_the_base(runs: Path) -> None:
    checkpoint = runs / "fsdp2" / "checkpoints" / "checkpoint-6"
    saved = load_file(checkpoint / "adapter_model.safetensors")
    assert all(
        torch.equal(tensor, saved[name])
        for name, tensor in load_file(runs / "fsdp2" / "adapter" / "adapter_model.safetensors").items()
    )
    state = torch.load(checkpoint / "pytorch_model_fsdp.bin", weights_only=True)
    # torch leaves out what is frozen, but for the second name of a tied weight.
    adapter = ("oft_R", "oft_magnitude")
    assert all(any(part in name for name in state) for part in adapter)
    assert all(any(part in name for part in adapter) or name.endswith("lm_head.weight") for name in state)
