"""The model of the cost beside measured ratios: one command prints and writes both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import cost_model
from harness.cells import SELECTIONS, Cell
from harness.contenders import FUSED
from harness.predict import GPUS, Gpu, _of_cell, cost, predicted_ratio
from harness.results import write_rows
from harness.run import run_cell
from orthotune.files.tables import read_table


def test_a_table_that_was_measured_before_is_compared_and_nothing_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cell = SELECTIONS["smoke"][0]
    rows = run_cell(cell, [one for one in FUSED if one.name in ("frozen", "orthotune")], torch.device("cpu"), 2)
    write_rows([*rows, replace(rows[0], contender="peft_oft")], tmp_path / "table.csv")
    monkeypatch.setattr(cost_model, "run_cell", lambda *_: pytest.fail("a model was run"))
    monkeypatch.setattr(cost_model, "measured_device", lambda *_: GPUS["h100"])
    words = ["--measured", str(tmp_path / "table.csv"), "--threads", "1", "--out", str(tmp_path / "rows.csv")]
    monkeypatch.setattr("sys.argv", ["cost_model.py", *words])
    cost_model.main()
    found = [row for _, row in read_table(tmp_path / "rows.csv")]
    assert [row["contender"] for row in found] == ["frozen", "orthotune"]
    assert float(found[1]["measured"]) == rows[1].median
    assert float(found[1]["predicted"]) == predicted_ratio(cell, "orthotune", GPUS["h100"])
    assert cell.label in capsys.readouterr().out


def test_a_device_is_known_by_four_numbers() -> None:
    found = cost_model.measured_device("float32", 64)
    assert min(found.bandwidth, found.products, found.float32, found.launch) > 0


def test_the_ratio_follows_from_the_device_and_not_from_a_measurement() -> None:
    cell, card = SELECTIONS["targets"][0], Gpu("", 1e10, 1e11, 1e10, "")
    # Where only launches count, the ratio is that of the launches.
    waiting = card._replace(launch=10.0)
    frozen, ours = predict_launches(cell)
    assert predicted_ratio(cell, "orthotune", waiting) == pytest.approx(ours / frozen, abs=1e-3)
    assert 1 < predicted_ratio(cell, "orthotune", card) != predicted_ratio(cell, "orthotune", waiting)


def predict_launches(cell: Cell) -> tuple[float, float]:
    """Kernels of the frozen step, and of one with rotations."""
    contenders = _of_cell(cell)
    found = [cost(contenders[name], GPUS["h100"]).launches for name in ("frozen", f"orthotune b={cell.block_size}")]
    return found[0], found[1]


def test_the_command_writes_predicted_beside_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--selection",
        "smoke",
        "--dtype",
        "float32",
        "--threads",
        "1",
        "--repetitions",
        "2",
        "--out",
        str(tmp_path / "rows.csv"),
    ]
    monkeypatch.setattr("sys.argv", ["cost_model.py", *words, "--out", str(tmp_path / "rows.csv")])
    cost_model.main()
    rows = [row for _, row in read_table(tmp_path / "rows.csv")]
    assert [row["contender"] for row in rows] == [*cost_model.NAMES] * len(SELECTIONS["smoke"])
    for row in rows:
        # Rounded to three digits.
        assert float(row["off"]) == pytest.approx(float(row["predicted"]) / float(row["measured"]) - 1, abs=6e-4)
    assert "off by" in capsys.readouterr().out
