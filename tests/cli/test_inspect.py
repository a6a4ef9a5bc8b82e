"""``orthotune inspect`` says what the file holds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.cli.conftest import small_llama

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
    assert "not orthogonal any more" in done.stdout
    assert "not orthogonal any more" not in call("inspect", FIXTURES / "peft-0.21.2-oft" / "exact").stdout


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
    assert "1 layers are applied as exact transforms" in done.stdout
    assert "another format" in done.stdout
    done = call("inspect", FIXTURES / "zeju-oft" / "oft-db_linear" / "adapter.safetensors")
    assert "COFT" in done.stdout


def test_a_base_adds_what_happens_to_the_weights(call: Callable, trained: Path) -> None:
    done = call("inspect", trained / "adapter", "--base", trained / "base", "--json")
    assert done.exit_code == 0, done.stderr
    rows = json.loads(done.stdout)["layers"]
    for row in rows:
        # a rotation turns whole neurons: the spectrum stays to the rounding of float32 weights, the weight does not
        assert row["spectrum_change"] < 1e-5 and row["weight_change"] > 0.01
        assert row["energy_after"] != row["energy_before"]
        assert row["energy_after"] == pytest.approx(row["energy_before"], rel=1e-5)
    without = json.loads(call("inspect", trained / "adapter", "--json").stdout)["layers"]
    assert all("spectrum_change" not in row for row in without)


def test_a_base_that_is_none(call: Callable, trained: Path) -> None:
    for base, said in ((trained / "nowhere", "nowhere"), (trained / "adapter", "config.json")):
        done = call("inspect", trained / "adapter", "--base", base)
        assert done.exit_code == 2 and said in done.stderr and "Traceback" not in done.stderr
    config = json.loads((trained / "base/config.json").read_text())
    small_llama(24).save_pretrained(trained / "other")
    assert config["hidden_size"] != 24
    done = call("inspect", trained / "adapter", "--base", trained / "other")
    assert done.exit_code == 2 and "layer 'model.layers.0" in done.stderr and not done.stdout


def test_two_adapters_beside_each_other(call: Callable, trained: Path, tmp_path: Path) -> None:
    for name, angle in (("a", 0.2), ("b", 0.5)):
        (tmp_path / name).mkdir()
        save_file(
            {"base_model.model.lin.oft_R.weight": torch.full((3, 1), math.tan(angle / 2)),
             **({"base_model.model.more.oft_R.weight": torch.zeros(1, 1)} if name == "b" else {})},
            tmp_path / name / "adapter_model.safetensors",
        )  # fmt: skip
        (tmp_path / name / "adapter_config.json").write_text('{"peft_type": "ORTHOTUNE"}')
    found = json.loads(call("inspect", tmp_path / "a", "--compare", tmp_path / "b", "--json").stdout)
    (row,) = found["layers"]
    assert row["angle_mean"] == pytest.approx(0.3, abs=1e-6) and row["cosine"] == pytest.approx(1)
    assert found["only_in_one"] == ["more"] and found["adapters"] == [str(tmp_path / "a"), str(tmp_path / "b")]
    plain = call("inspect", tmp_path / "a", "--compare", tmp_path / "b").stdout
    assert "0.3000 rad on average" in plain and "Layers of only one adapter, or with another side: more" in plain
    same = json.loads(call("inspect", trained / "adapter", "--compare", trained / "adapter", "--json").stdout)
    assert max(row["angle_max"] for row in same["layers"]) < 1e-3  # the angle of a rounded identity
    for words, said in (
        ((tmp_path / "a", "--compare", trained / "adapter"), "no layer that both rotate"),
        ((tmp_path / "a", "--compare", tmp_path / "c"), "There is no adapter at"),
        ((tmp_path / "a", "--compare", tmp_path / "b", "--base", "x"), "does not use --base"),
    ):
        done = call("inspect", *words)
        assert done.exit_code == 2 and said in done.stderr and not done.stdout, words
