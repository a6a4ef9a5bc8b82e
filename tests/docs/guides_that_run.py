"""Every guide typed from beginning to end on the built-in models, and the notebooks; `make test-docs`.

Some minutes, so `make test` does not collect this file: its name is not one of pytest's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.docs.test_pages import named
from tests.support.page_blocks import DOCS, GUIDES, steps

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with the command of this environment on the path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    return tmp_path


@pytest.mark.parametrize("page", [page for page in GUIDES if page.parent.name == "how-to"], ids=named)
def test_guide_runs(page: Path, folder: Path) -> None:
    names: dict[str, Any] = {"__name__": "__guide__"}
    for block in steps(page):
        if block.needs and find_spec(block.needs) is None:
            continue
        where = f"{page.name}:{block.line}"
        if block.language == "python":
            exec(compile(block.text, where, "exec"), names)
            continue
        shell = ["bash", "-euo", "pipefail", "-c", block.text]
        done = subprocess.run(shell, capture_output=True, text=True, cwd=folder)
        assert done.returncode == 0, f"{where}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.mark.parametrize("notebook", sorted((DOCS / "start").glob("*.ipynb")), ids=named)
def test_notebook_runs(notebook: Path, folder: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    book = nbformat.read(notebook, as_version=4)
    nbclient.NotebookClient(book, timeout=1200, resources={"metadata": {"path": str(folder)}}).execute()
    # A command that fails sets no error in a cell: its exit status has to be asked for.
    for cell in book.cells:
        for output in cell.get("outputs", []):
            assert "Traceback" not in output.get("text", "") and "Error:" not in output.get("text", ""), output["text"]
