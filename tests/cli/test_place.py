"""Outputs appear by rename."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orthotune.cli.demo import free_folder
from orthotune.operations.place import new_folder


def _fill(folder: Path) -> None:
    (folder / "a").write_text("new")


def test_folder_appears_when_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with new_folder(out) as folder:
        _fill(folder)
        assert not out.exists()
    assert (out / "a").read_text() == "new"
    assert [p.name for p in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("there", [False, True])
def test_nothing_is_left_by_a_failure(tmp_path: Path, there: bool) -> None:
    out = tmp_path / "out"
    if there:
        out.mkdir()
        (out / "old").write_text("kept")
    with pytest.raises(RuntimeError), new_folder(out, overwrite=True) as folder:
        _fill(folder)
        raise RuntimeError
    assert [p.name for p in tmp_path.rglob("*")] == (["out", "old"] if there else [])


def test_failure_of_the_last_step_gives_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("kept")
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="No space left"), new_folder(out, overwrite=True) as folder:
        _fill(folder)
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "old"]


def test_free_folder_counts_up(tmp_path: Path) -> None:
    wanted = tmp_path / "demo"
    assert free_folder(wanted) == wanted
    wanted.mkdir()
    assert free_folder(wanted) == wanted, "an empty folder is free"
    _fill(wanted)
    (tmp_path / "demo-2").write_text("a file")
    assert free_folder(wanted) == tmp_path / "demo-3"


def test_a_place_is_called_as_its_verb_calls_it(call: Callable, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("x")
    done = call("convert", trained / "adapter", tmp_path / "taken", "--to", "peft")
    assert done.exit_code == 2 and f"OUT {tmp_path / 'taken'}" in done.stderr and "--out" not in done.stderr
    done = call("combine", trained / "adapter", "--out", tmp_path / "taken")
    assert done.exit_code == 2 and f"--out {tmp_path / 'taken'}" in done.stderr
