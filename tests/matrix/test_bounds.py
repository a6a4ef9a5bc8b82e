"""Every lower bound in pyproject.toml is what a cell of the matrix installs."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.matrix.cells import EXTRAS, HERE, ROOT, read_cells, stated

tomllib = pytest.importorskip("tomllib", reason="reads pyproject.toml; part of Python from 3.11 on")
requirements = pytest.importorskip("packaging.requirements")
Version = pytest.importorskip("packaging.version").Version


def _bounds() -> dict[str, str]:
    """Lower bounds by name, of what is always installed and of the extras that the cells install."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = project["dependencies"] + [line for extra in EXTRAS for line in project["optional-dependencies"][extra]]
    bounds: dict[str, str] = {}
    for line in asked:
        needed = requirements.Requirement(line)
        if needed.name == "orthotune":
            continue  # another extra, which the cells install too
        (lower,) = [part.version for part in needed.specifier if part.operator == ">="]
        assert bounds.setdefault(needed.name.lower(), lower) == lower, f"{needed.name} has two lower bounds"
    return bounds


@pytest.mark.parametrize("name, lower", [pair for pair in _bounds().items() if pair[0] != "torch"])
def test_the_oldest_cell_installs_the_bound(name: str, lower: str) -> None:
    pinned = stated(HERE / "oldest.txt")[name].partition(";")[0].partition("==")[2]
    assert Version(pinned) == Version(lower)


def test_the_oldest_torch_is_the_bound() -> None:
    cells, _ = read_cells()
    assert Version(cells["oldest-torch"].torch) == Version(_bounds()["torch"])
    assert cells["oldest-torch"].versions == cells["oldest"].versions == "oldest.txt"


def test_every_supported_python_has_a_cell() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    supported = set(re.findall(r"Programming Language :: Python :: (3\.\d+)", text))
    assert {cell.python for cell in read_cells()[0].values()} == supported


def test_the_quick_cells_take_the_torch_of_the_project() -> None:
    torch = stated(ROOT / "constraints.txt")["torch"].partition("==")[2]
    cells, _ = read_cells()
    assert {cells[name].torch for name in ("oldest", "newest")} == {torch}


def test_ci_runs_the_oldest_cell() -> None:
    assert re.search(r"test-matrix CELLS=oldest ", (ROOT / ".ci" / "run").read_text(encoding="utf-8"))


def test_the_lists_of_tests_name_files() -> None:
    _, tests = read_cells()
    assert not [name for kind in tests.values() for name in kind if not (ROOT / name).exists()]
    assert all(any(Path(name).is_relative_to(whole) for whole in tests["whole"]) for name in tests["short"])


def test_environments_are_no_part_of_the_tree() -> None:
    done = subprocess.run(["git", "check-ignore", ".venv-matrix/oldest"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode == 128:
        pytest.skip("no git tree")
    assert done.returncode == 0
