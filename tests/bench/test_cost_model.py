"""The model of the cost beside measured ratios: one command prints and writes both."""

from __future__ import annotations

from pathlib import Path

import pytest

import cost_model
from harness.cells import SELECTIONS
from harness.predict import Gpu, predicted_ratio
from orthotune.files.tables import read_table


def test_a_device_is_known_by_four_numbers() -> None:
    found = cost_model.measured_device("float32", 64)
    assert min(found.bandwidth, found.products, found.float32, found.launch) > 0


def test_the_ratio_follows_from_the_device_and_not_from_a_measurement() -> None:
    cell = SELECTIONS["targets"][0]
    quick, slow = (Gpu("", 1e10, 1e11, 1e10, "", launch) for launch in (1e-6, 1e-1))
    # Where only launches count, the ratio is that of the launches.
    assert 1 < predicted_ratio(cell, "orthotune", quick) < predicted_ratio(cell, "orthotune", slow)


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
