"""An image recipe shared by two processes ends as in one that takes their batches one after the other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from orthotune.runs.checkpoint_manifest import check
from tests.distributed.test_training import lines, told
from tests.support.kept_results import keep_result

pytestmark = pytest.mark.slow

#: The mean of two means, in another order than the sum of both: parts of 1e-7.
CURVE = 1e-5
#: Adam divides by the size of the gradient, so that what rounding does to a small gradient shows in the parameter;
#: four steps of 1e-2 move it by up to 4e-2.
NUMBERS = 1e-5


def test_the_loss_curve_is_that_of_one_process(runs: Path) -> None:
    alone, shared = lines(runs / "pictures-1"), lines(runs / "pictures-2")
    assert [line["step"] for line in shared] == [line["step"] for line in alone] == [1, 2, 3, 4]
    for key in ("train_loss", "gradient_norm", "learning_rate"):
        assert [line[key] for line in shared] == pytest.approx([line[key] for line in alone], rel=CURVE)
    assert len({line["train_loss"] for line in alone}) == 4


def test_the_saved_adapter_is_that_of_one_process(runs: Path) -> None:
    adapters = [sorted((runs / f"pictures-{count}" / "adapter").rglob("*")) for count in (1, 2)]
    names = [[path.relative_to(runs / f"pictures-{n}").as_posix() for path in adapters[n - 1]] for n in (1, 2)]
    assert names[0] == names[1]
    compared = 0
    for one, other in zip(*adapters, strict=True):
        if one.suffix == ".safetensors":
            alone, shared = load_file(one), load_file(other)
            assert {key: (v.shape, v.dtype) for key, v in alone.items()} == {
                k: (v.shape, v.dtype) for k, v in shared.items()
            }
            apart = max(float((alone[key] - shared[key]).abs().max()) for key in alone)
            largest = max(float(value.abs().max()) for value in alone.values())
            losses = [[line["train_loss"] for line in lines(runs / f"pictures-{count}")] for count in (1, 2)]
            keep_result("two-processes-pictures", {"losses": losses, "numbers apart": apart, "numbers up to": largest})
            assert apart < NUMBERS and largest > 1e-3  # it learned
            compared += 1
    assert compared


def test_one_process_speaks_and_writes_and_its_checkpoint_is_whole(runs: Path) -> None:
    first, second = told(runs, "pictures-2", 0), told(runs, "pictures-2", 1)
    assert first["said"] and not second["said"] and {**first, "said": []} == second
    home = runs / "pictures-2"
    assert not list(home.glob(".*")) and check(home / "checkpoints" / "checkpoint-4") == 4
    record = json.loads((home / "run.json").read_text())
    assert record["skipped_steps"] == 0 and all((home / name).exists() for name in record["artifacts"].values())
