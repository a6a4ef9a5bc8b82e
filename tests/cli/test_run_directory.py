"""Whoever names a run directory means the adapter in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(params=["run.json", "rewind.json"])
def run(trained: Path, request: pytest.FixtureRequest) -> Path:
    """The directory of a run, and what a rewinding wrote."""
    (trained / request.param).write_text("{}")
    return trained


@pytest.mark.parametrize(
    "line",
    [
        ("inspect", "RUN"),
        ("inspect", "RUN", "--compare", "RUN"),
        ("identify", "RUN"),
        ("convert", "RUN", "OUT", "--to", "orthotune"),
        ("export", "RUN", "OUT", "--base", "RUN/base", "--to", "dense"),
        ("merge", "RUN", "--out", "OUT", "--base", "RUN/base"),
        ("merge", "RUN", "--out", "OUT", "--base", "RUN/base", "--stream"),
        ("combine", "RUN:0.5", "RUN:0.25", "--out", "OUT"),
    ],
    ids=lambda line: " ".join(line),
)
def test_the_adapter_of_a_run_is_found(call: Callable, run: Path, tmp_path: Path, line: tuple[str, ...]) -> None:
    done = call(*(word.replace("RUN", str(run)).replace("OUT", str(tmp_path / "out")) for word in line))
    assert done.exit_code == 0, done.stderr


def test_a_run_without_an_adapter_is_explained(call: Callable, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text("{}")
    done = call("inspect", tmp_path)
    assert done.exit_code == 2 and "the run is not finished" in done.stderr
    (tmp_path / "model").mkdir()
    done = call("inspect", tmp_path)
    assert done.exit_code == 2 and f"Use the model itself: {tmp_path / 'model'}" in done.stderr
