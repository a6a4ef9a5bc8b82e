"""Where a command writes: refused when taken, complete when it appears, found again when it was interrupted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orthotune.errors import OutputError
from orthotune.files.journal import Journal
from orthotune.files.locks import FileLock
from orthotune.files.output import new_folder, resumable


def _fill(folder: Path) -> None:
    (folder / "a").write_text("new")


def test_folder_appears_when_complete(tmp_path: Path) -> None:
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
    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if Path(source).name.endswith(".part"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OutputError, match="--out .*No space left"), new_folder(out, overwrite=True) as folder:
        _fill(folder)
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "old"]


def test_an_error_of_the_block_comes_through_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "out"):
        (tmp_path / "a model that is not there").read_text()


@pytest.mark.parametrize("file", [False, True])
def test_an_interrupted_write_is_found_again(tmp_path: Path, file: bool) -> None:
    out = tmp_path / "out"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), resumable(out, file=file) as folder:
            with (folder / "out").open("a") as growing:
                growing.write("x")
            raise KeyboardInterrupt
    with resumable(out, file=file) as folder:
        assert (folder / "out").read_text() == "xx"
    assert (out if file else out / "out").read_text() == "xx"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_another_process_that_writes_is_named(tmp_path: Path) -> None:
    other = FileLock(tmp_path / ".out.export.lock")
    other.acquire()
    with (
        pytest.raises(OutputError, match=f"OUT .*another process that writes to it: process {os.getpid()} on .*kill"),
        resumable(tmp_path / "out"),
    ):
        raise AssertionError
    other.release()
    with resumable(tmp_path / "out") as folder:
        _fill(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_killed_export_leaves_no_half_file_in_the_next_one(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "inputs")
    (tmp_path / "unet").mkdir()
    for name in ("unet/a", "unet/.b.0123456789ab.part"):
        (tmp_path / name).touch()
    journal.add("unet/a")
    assert Journal(tmp_path, "inputs").done("unet/a")
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".orthotune-export.json", "a", "unet"]
    assert not Journal(tmp_path, "other inputs").done("unet/a")
    assert not list(tmp_path.iterdir())
