"""``orthotune inspect`` says what the file holds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

FIXTURES = Path(__file__).parents[1] / "fixtures"


def test_json_has_every_layer(call: Callable, trained: Path) -> None:
    done = call("inspect", trained / "adapter", "--json")
    assert done.exit_code == 0
    facts = json.loads(done.stdout)
    assert {row["layer"].rsplit(".", 1)[1] for row in facts["layers"]} == {"q_proj", "down_proj"}
    assert len(facts["layers"]) == 4
    assert facts["parameters"] == sum(row["parameters"] for row in facts["layers"]) == 2 * (4 + 6) * 6
    assert facts["map"] == "exact"
    assert facts["beyond_stock_peft"] == []
    assert 0 < facts["angle_mean"] < facts["angle_max"] <= math.pi
    # float32 rotations of 4x4 blocks: some roundings of 6e-8
    assert facts["orthogonality_error"] < 2e-6


def test_angle_is_the_one_that_was_stored(call: Callable, tmp_path: Path) -> None:
    # for a block of two, Cayley of the entry tan(angle / 2) turns by exactly that angle
    save_file(
        {"base_model.model.lin.oft_R.weight": torch.tensor([[math.tan(0.15)], [0.0], [math.tan(-0.05)]])},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "ORTHOTUNE", "side": "out"}')
    facts = json.loads(call("inspect", tmp_path, "--json").stdout)
    assert facts["angle_max"] == pytest.approx(0.3, abs=1e-6)
    assert facts["angle_mean"] == pytest.approx(0.4 / 3, abs=1e-6)
    assert facts["beyond_stock_peft"] == ["side"]


def test_table_names_layers_whole_and_sums_up(call: Callable, trained: Path) -> None:
    done = call("inspect", trained / "adapter")
    assert "model.layers.1.self_attn.q_proj" in done.stdout
    assert "4 × 4" in done.stdout
    assert "120 parameters in 4 rotations" in done.stdout
    assert "stock PEFT    can load it" in done.stdout


def test_series_that_left_the_rotations_is_told(call: Callable) -> None:
    done = call("inspect", FIXTURES / "peft-0.17.1-oft" / "neumann5")
    assert "neumann_legacy with 5 terms" in done.stdout
    assert "left the rotations" in done.stdout
    assert "left the rotations" not in call("inspect", FIXTURES / "peft-0.21.2-oft" / "exact").stdout


def test_no_adapter_is_two_and_words(call: Callable, tmp_path: Path) -> None:
    done = call("inspect", tmp_path / "none")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "There is no adapter at" in done.stderr
    assert "Traceback" not in done.stderr


CASES = sorted(path.parent for path in FIXTURES.glob("*/*/info.json"))


@pytest.mark.parametrize("case", CASES, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_every_readable_file_is_inspected(call: Callable, case: Path) -> None:
    adapter = case if (case / "adapter_config.json").exists() else next(case.glob("adapter*.safetensors"))
    done = call("inspect", adapter, "--json")
    assert done.exit_code == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["format"]
    assert facts["layers"]
    assert all(0 <= row["angle_max"] <= math.pi + 1e-9 for row in facts["layers"])
    assert (facts["beyond_stock_peft"] is None) == (facts["format"] not in ("peft-oft", "peft-oft-0.16"))


def test_what_is_no_rotation_is_told(call: Callable) -> None:
    done = call("inspect", FIXTURES / "peft-0.13.2-boft" / "m1_bs4")
    assert "peft-boft-0.11" in done.stdout
    assert "1 layers run as exact transforms" in done.stdout
    assert "another format" in done.stdout
    done = call("inspect", FIXTURES / "zeju-oft" / "oft-db_linear" / "adapter.safetensors")
    assert "COFT" in done.stdout
