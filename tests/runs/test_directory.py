from __future__ import annotations

import json
from pathlib import Path

import pytest

from orthotune.errors import OutputError, RecipeError
from orthotune.files.json_file import write_json
from orthotune.runs.directory import RunDirectory

SETTINGS = {"steps": 4, "output": "x", "resume": "never"}


def _checkpoint(home: RunDirectory, step: int, whole: bool = True) -> Path:
    path = home.checkpoints / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step})[: None if whole else 8])
    return path


def test_an_unwritable_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Needed: a directory that can be written to. Pass output=PATH"):
        RunDirectory(tmp_path / "file" / "run")


def test_another_run_is_not_overwritten(tmp_path: Path) -> None:
    home = RunDirectory(tmp_path / "run")
    assert home.open(SETTINGS, "never") is None
    home.claim(SETTINGS)
    with pytest.raises(OutputError, match="an unfinished run, without a checkpoint yet. Pass resume=auto"):
        home.open(SETTINGS, "never")
    _checkpoint(home, 2)
    with pytest.raises(OutputError, match="an unfinished run with checkpoint-2"):
        home.open(SETTINGS, "never")
    write_json(home.record, {})
    with pytest.raises(OutputError, match="a finished run. Pass output=PATH for another one, or resume=auto"):
        home.open(SETTINGS, "never")


def test_resume_takes_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    home = RunDirectory(tmp_path)
    home.claim(SETTINGS)
    nine = _checkpoint(home, 9)
    _checkpoint(home, 10, whole=False)
    _checkpoint(home, 2)
    assert home.open({**SETTINGS, "resume": "auto", "output": "y"}, "auto") == nine
    assert home.open(SETTINGS, str(nine)) == nine
    with pytest.raises(RecipeError, match="no complete checkpoint there"):
        home.open(SETTINGS, str(home.checkpoints / "checkpoint-10"))


def test_resume_with_other_settings_is_refused(tmp_path: Path) -> None:
    home = RunDirectory(tmp_path)
    home.claim(SETTINGS)
    with pytest.raises(RecipeError, match="steps=5 instead of 4"):
        home.open({**SETTINGS, "steps": 5}, "auto")


def test_a_failed_run_leaves_no_empty_directory(tmp_path: Path) -> None:
    home = RunDirectory(tmp_path / "run")
    home.drop_if_empty()
    assert not home.path.exists()
    home = RunDirectory(tmp_path / "run")
    home.claim(SETTINGS)
    home.drop_if_empty()
    assert home.path.exists()
