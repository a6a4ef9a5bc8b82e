"""What the runner says: words it does not know, cells that cannot be set up, counts, the table."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.matrix import run
from tests.matrix.cells import Cell
from tests.matrix.environment import Broken, find_python, install
from tests.matrix.table import BEGIN, END, Result, count, markdown, put_in_page

NOWHERE = Cell("nowhere", python="9.9", torch="2.13.0", versions="any")


def test_an_unknown_cell_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--cell", "ancient", "--into", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "no cell is called ancient; there are: oldest, newest" in said


def test_a_python_that_is_not_here_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(Broken, match=r"^no Python 9\.9 with venv and pip was found$"):
        install(NOWHERE, tmp_path / "nowhere")


def test_this_python_is_found() -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    ask = [find_python(version), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    assert subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip() == version


def test_a_cell_that_cannot_be_set_up_fails_and_stops_no_other(tmp_path: Path) -> None:
    result = run.run_cell(NOWHERE, "short", [], tmp_path, [])
    assert not result.good
    kept = run.keep(tmp_path / "results.json", result, ["nowhere"])
    assert "- nowhere: no Python 9.9" in markdown(kept)


def test_lines_of_a_cell_replace_those_of_the_project() -> None:
    lines = Cell("oldest", "3.11", "2.9.0", "oldest.txt").constraints().splitlines()
    names = [line.partition("==")[0] for line in lines]
    assert len(names) == len(set(names))
    assert "torch==2.9.0" in lines
    assert "numpy" in names  # of constraints.txt, which the cell does not name
    assert Cell("newest", "3.11", "2.13.0", "any").constraints() == "torch==2.13.0\n"
    assert Cell("all", "3.13", "any", "any").constraints() == ""


JUNIT = '<testsuites><testsuite name="pytest" tests="{}" failures="{}" errors="{}" skipped="{}"/></testsuites>'


@pytest.mark.parametrize(
    "numbers, good", [((9, 0, 0, 2), True), ((9, 1, 2, 1), False), ((3, 0, 0, 3), False), ((0, 0, 0, 0), False)]
)
def test_counts_and_what_is_good(numbers: tuple[int, ...], good: bool, tmp_path: Path) -> None:
    (tmp_path / "junit.xml").write_text(JUNIT.format(*numbers))
    result = Result("newest", "short", counts=count(tmp_path / "junit.xml"))
    tests, failures, errors, skipped = numbers
    expected = {"passed": tests - failures - errors - skipped, "skipped": skipped, "failed": failures + errors}
    assert result.counts == expected
    assert result.good is good


def test_a_result_takes_the_place_of_the_last_one(tmp_path: Path) -> None:
    path, order = tmp_path / "results.json", ["a", "b"]
    run.keep(path, Result("b", "whole", counts={"passed": 1, "skipped": 0, "failed": 0}), order)
    run.keep(path, Result("a", "whole", {"torch": "2.13.0+cpu"}, {"passed": 2, "skipped": 0, "failed": 0}), order)
    kept = run.keep(path, Result("b", "whole", counts={"passed": 3, "skipped": 0, "failed": 1}), order)
    assert [(result.cell, result.counts["passed"]) for result in kept] == [("a", 2), ("b", 3)]
    assert [row["cell"] for row in json.loads(path.read_text())] == order
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}old{END}after\n")
    put_in_page(markdown(kept), page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"{END}after\n")
    assert "| a | - | 2.13.0 |" in text
    assert "old" not in text
