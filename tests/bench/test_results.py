"""A table comes back from its file as it was; a cell gives a row for everybody; pictures appear."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from harness import machine
from harness.cells import BASE, Cell
from harness.contenders import LLAMA
from harness.plot import draw_bars, draw_growth
from harness.results import Row, read_rows, write_rows
from harness.run import run_cell
from orthotune.errors import OrthotuneError

TINY = Cell(hidden=128, tokens=4, layers=1)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    found = run_cell(TINY, LLAMA, torch.device("cpu"), repetitions=2)
    return found + run_cell(replace(TINY, tokens=1, mode="decode"), LLAMA[:2], torch.device("cpu"), repetitions=2)


def test_the_floor_to_itself_is_one_and_everybody_has_a_row(rows: list[Row]) -> None:
    assert [row.contender for row in rows[:6]] == [contender.name for contender in LLAMA]
    assert [row.median for row in rows if row.contender == "frozen"] == [1.0, 1.0]
    assert all(0 < row.p10 <= row.median <= row.p90 for row in rows)


def test_what_a_cpu_does_not_measure_is_empty(rows: list[Row]) -> None:
    assert {row.milliseconds for row in rows} == {row.peak_bytes for row in rows} == {None}
    assert [row.saved_bytes is None for row in rows] == [row.mode != "train" for row in rows]


def test_exact_rotations_keep_less_than_lora_here(rows: list[Row]) -> None:
    saved = {row.contender: row.saved_bytes or 0 for row in rows[:6]}
    # exactly: what the frozen model keeps anyway, and what tests/bench/test_work.py bounds
    assert saved["frozen"] < saved["orthotune"] < saved["peft_oft"]


def test_round_trip(rows: list[Row], tmp_path: Path) -> None:
    write_rows(rows, tmp_path / "new" / "table.csv")
    assert read_rows(tmp_path / "new" / "table.csv") == rows
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["table.csv"]


def test_numbers_of_a_gpu_come_back(rows: list[Row], tmp_path: Path) -> None:
    gpu = [replace(rows[0], milliseconds=1.25, peak_bytes=7, device="cuda", load=None)]
    write_rows(gpu, tmp_path / "table.csv")
    assert read_rows(tmp_path / "table.csv") == gpu


def test_a_damaged_table_names_its_line(rows: list[Row], tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    write_rows(rows, path)
    path.write_text(path.read_text().replace("128,1,1,bfloat16", "128,one,1,bfloat16", 1))
    with pytest.raises(OrthotuneError, match="table.csv, line 8.*'one'"):
        read_rows(path)


def test_rows_tell_the_machine_but_no_path(rows: list[Row]) -> None:
    row = rows[0]
    assert f"torch {torch.__version__.partition('+')[0]}" in row.versions
    assert row.threads == torch.get_num_threads()
    assert not [text for text in (row.device_name, row.versions, row.commit) if str(Path.home()) in text]


def test_no_commit_outside_of_a_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "machine.py"))
    assert machine.commit() == ""


def _table(cells: list[Cell], rows: list[Row]) -> list[Row]:
    return [replace(row, **vars(cell), saved_bytes=5) for cell in cells for row in rows[:6]]


def test_pictures(rows: list[Row], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw_bars(_table([BASE, replace(BASE, tokens=512)], rows), tmp_path / "bars.png")
    draw_bars(rows, tmp_path / "plain.png")  # neither the base cell nor a target in it
    draw_growth(_table([BASE, replace(BASE, tokens=64), replace(BASE, hidden=512)], rows), tmp_path / "growth.png")
    draw_growth(rows, tmp_path / "empty.png")
    for name in ("bars", "plain", "growth", "empty"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
