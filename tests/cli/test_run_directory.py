"""Whoever names a run directory means the adapter in it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from orthotune.errors import AdapterFileError
from orthotune.files.locks import FileLock
from orthotune.files.run_adapter import adapter_in
from orthotune.image.opened_pipeline import open_pipeline
from orthotune.operations.generation.open_model import open_model
from orthotune.text.reward_model import model_reward


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


OLDER = [
    ("inspect", "RUN"),
    ("identify", "RUN"),
    ("convert", "RUN", "OUT", "--to", "orthotune"),
    ("export", "RUN", "OUT", "--base", "RUN/base", "--to", "dense"),
    ("merge", "RUN", "--out", "OUT", "--base", "RUN/base"),
    ("combine", "RUN:0.5", "RUN/adapter:0.25", "--out", "OUT"),
    ("generate", "RUN", "Hello"),
]


@pytest.mark.parametrize("line", OLDER, ids=lambda line: " ".join(line))
def test_the_adapter_of_a_run_that_goes_on_is_not_taken(
    call: Callable, trained: Path, tmp_path: Path, line: tuple[str, ...]
) -> None:
    """A finished run of 4 steps was made longer, and is trained by this process."""
    (trained / "settings.json").write_text('{"recipe": "sft", "model": "base"}')
    (trained / "run-4.json").write_text("{}")
    lock = FileLock(trained / ".lock")
    lock.acquire()
    done = call(*(word.replace("RUN", str(trained)).replace("OUT", str(tmp_path / "out")) for word in line))
    lock.release()
    assert done.exit_code == 2 and f"process {os.getpid()} on " in done.stderr
    assert "the adapter of 4 steps that was written before it went on" in done.stderr
    assert f"name the older adapter itself: {trained / 'adapter'}" in done.stderr
    assert not (tmp_path / "out").exists()


def test_what_is_older_than_its_run_is_refused_and_what_is_current_is_taken(trained: Path) -> None:
    (trained / "settings.json").write_text("{}")
    with pytest.raises(AdapterFileError, match="a run that is not finished, with the adapter that was written before"):
        adapter_in(trained)
    with pytest.raises(AdapterFileError, match="the adapter that was written before"):
        model_reward(str(trained))
    assert adapter_in(trained / "adapter") == trained / "adapter"
    for record in ("run.json", "stopped.json"):
        (trained / record).write_text("{}")
        assert adapter_in(trained) == trained / "adapter"
        (trained / record).unlink()
    (trained / "adapter").rename(trained / "model")
    for opened in (open_model, open_pipeline):
        (trained / "settings.json").write_text('{"recipe": "subject"}')
        with pytest.raises(AdapterFileError, match=f"older model itself: {trained / 'model'}"):
            opened(trained)
