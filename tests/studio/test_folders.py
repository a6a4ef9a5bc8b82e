"""Nothing outside the folders that the studio was started with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orthotune.errors import OrthotuneError
from orthotune.studio.folders import Folders


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    (tmp_path / "work" / "photos").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key.txt").write_text("key")
    return Folders([tmp_path / "work", tmp_path / "data"])


def test_paths_inside_are_resolved_from_the_workspace(folders: Folders, tmp_path: Path) -> None:
    assert folders.inside("photos") == tmp_path / "work" / "photos"
    assert folders.inside("photos/../runs/a") == tmp_path / "work" / "runs" / "a"
    assert folders.inside(tmp_path / "data" / "x.jsonl") == tmp_path / "data" / "x.jsonl"
    assert folders.shown(tmp_path / "work" / "runs" / "a") == "runs/a"
    assert folders.shown(tmp_path / "data" / "x") == str(tmp_path / "data" / "x")


@pytest.mark.parametrize(
    "given", ["../secret/key.txt", "/etc/passwd", "~/.ssh/id_rsa", "photos/../../secret", "a\0b", "link/key.txt"]
)
def test_paths_outside_are_refused(folders: Folders, tmp_path: Path, given: str) -> None:
    (tmp_path / "work" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(OrthotuneError, match="outside the folders|null"):
        folders.inside(given)


def test_settings_that_name_a_path_outside_are_refused(folders: Folders, tmp_path: Path) -> None:
    (tmp_path / "work" / "link").symlink_to(tmp_path / "secret")
    folders.check(
        {"model": "meta-llama/Llama-3.2-1B", "data": "photos", "steps": 3, "sample_prompts": ["What is 1/2?", "[a]\0"]}
    )
    (tmp_path / "work" / "photos" / "a.txt").write_text("a")
    folders.check({"data": "photos/*.txt"})
    folders.check({"reward": "exact", "data": [{"path": str(tmp_path / "data" / "a.jsonl"), "weight": 0.5}]})
    for settings in (
        {"data": "/etc/passwd"}, {"data": "../secret/key.txt"}, {"data": [{"path": "link/key.txt"}]},
        {"rotation": {"file": str(tmp_path / "secret")}}, {"reward": "link/key.txt:function"},
        {"data": "li*/key.txt"}, {"data": "**/*.txt"}, {"data": {"/etc/passwd": 0.5}},
    ):  # fmt: skip
        with pytest.raises(OrthotuneError, match=f"{next(iter(settings))}.*outside the folders"):
            folders.check(settings)


def test_runs_are_found_below_the_roots_only(folders: Folders, tmp_path: Path) -> None:
    for run in ("work/runs/a", "work/b", "secret/c", "work/.hidden/d", "data/deep/er/e"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "settings.json").write_text("{}")
    (tmp_path / "work" / "link").symlink_to(tmp_path / "secret")
    found = {run.relative_to(tmp_path).as_posix() for run in folders.runs()}
    assert found == {"work/runs/a", "work/b", "data/deep/er/e"}


def test_a_name_of_another_encoding_does_not_hide_the_other_runs(folders: Folders, tmp_path: Path) -> None:
    names = [b"a", b"caf\xe9", "日本\u3000語".encode()]
    for name in names:
        run = os.fsencode(tmp_path / "work") + b"/" + name
        os.mkdir(run)
        Path(os.fsdecode(run), "settings.json").write_text("{}")
    assert {run.name for run in folders.runs()} == {"a", "日本\u3000語"}


def test_links_below_a_path_that_lead_outside_are_refused(folders: Folders, tmp_path: Path) -> None:
    run = tmp_path / "work" / "run"
    (run / "adapter").mkdir(parents=True)
    (run / "adapter" / "inner.txt").symlink_to(tmp_path / "data")
    assert folders.tree("run") == run
    (run / "adapter" / "outer.txt").symlink_to(tmp_path / "secret" / "key.txt")
    with pytest.raises(OrthotuneError, match="outside the folders"):
        folders.tree("run")


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OrthotuneError, match="nothing there"):
        Folders([tmp_path / "no"])
    with pytest.raises(OrthotuneError, match="at least one"):
        Folders([])
