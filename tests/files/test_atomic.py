"""A name has the old content or the new one at any moment, and nothing else is left."""

from __future__ import annotations

import os
import signal
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from orthotune.errors import OutputError
from orthotune.files import atomic, platforms
from orthotune.files.atomic import atomic_write, sweep, write_bytes, write_text

POSIX = pytest.mark.skipif(not hasattr(os, "fork"), reason="permissions and signals of POSIX")


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_write(tmp_path / "a") as partial:
        partial.write_text("half")
        raise RuntimeError
    with pytest.raises(RuntimeError), atomic_write(tmp_path / "folder") as partial:
        partial.mkdir()
        (partial / "file").touch()
        raise RuntimeError
    assert _names(tmp_path) == []


def test_a_file_and_a_folder_appear_complete_and_replace_what_was_there(tmp_path: Path) -> None:
    for content in ("old", "new"):
        with atomic_write(tmp_path / "deep" / "folder") as partial:
            partial.mkdir()
            (partial / content).touch()
            assert not (tmp_path / "deep" / "folder" / content).exists()
        write_text(tmp_path / "deep" / "a", content)
    assert _names(tmp_path / "deep") == ["a", "folder"]
    assert _names(tmp_path / "deep" / "folder") == ["new"]
    assert (tmp_path / "deep" / "a").read_text() == "new"


def test_line_ends_are_the_same_on_every_system(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "ä\nb\r\n")
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa4\nb\r\n"


STEPS = {
    "before the rename": ("replace", 1),
    "between the renames of a folder": ("replace", 2),
    "after the rename": ("fsync", -1),
}


@POSIX
@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("step", STEPS)
def test_a_process_killed_at_any_moment_leaves_the_old_or_the_new(tmp_path: Path, step: str, folder: bool) -> None:
    """A fork is killed at a system call of the writer; then the next process puts the folder in order."""
    path = tmp_path / "out"

    def write(content: str) -> None:
        with atomic_write(path) as partial:
            if folder:
                partial.mkdir()
                (partial / "a").write_text(content)
            else:
                partial.write_text(content)

    def content() -> str:
        return (path / "a" if folder else path).read_text()

    write("old")
    name, count = STEPS[step]
    if count == 2 and not folder:
        pytest.skip("a file has one rename")
    child = os.fork()
    if child == 0:
        calls, real = 0, getattr(os, name)

        def dying(*arguments: object) -> object:
            nonlocal calls
            calls += 1
            renamed = count == -1 and content_is("new")
            if calls == count or renamed:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments)

        def content_is(wanted: str) -> bool:
            try:
                return content() == wanted
            except OSError:
                return False

        setattr(os, name, dying)
        try:
            write("new")
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    sweep(tmp_path)
    assert content() == ("new" if count == -1 else "old")
    assert _names(tmp_path) == ["out"]


def test_a_failed_exchange_gives_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    replace = os.replace

    def fail(source: Path, target: Path) -> None:
        if str(source).endswith(".part"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with (
        pytest.raises(OutputError, match="writing .*out. Found: No space left on device. Free some space"),
        atomic_write(tmp_path / "out") as partial,
    ):
        partial.mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "old"]


def test_bytes_reach_the_disk_before_the_name_and_the_name_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []

    def recorded(name: str, real: Callable) -> Callable:
        def call(path: Path, *more: object) -> object:
            steps.append(f"{name} {'folder' if Path(path).is_dir() else 'file'} {Path(path).suffix or Path(path).name}")
            return real(path, *more)

        return call

    for name in ("flush_file", "flush_folder"):
        monkeypatch.setattr(atomic, name, recorded(name, getattr(platforms, name)))
    monkeypatch.setattr(os, "replace", recorded("replace", os.replace))
    write_bytes(tmp_path / "a", b"x")
    assert steps == ["flush_file file .part", "replace file .part", f"flush_folder folder {tmp_path.name}"]
    steps.clear()
    with atomic_write(tmp_path / "b") as partial:
        (partial / "inner").mkdir(parents=True)
        (partial / "inner" / "file").touch()
    assert steps[-2:] == ["replace folder .part", f"flush_folder folder {tmp_path.name}"]
    assert sorted(steps[:-2]) == ["flush_file file file", "flush_folder folder .part", "flush_folder folder inner"]


def test_a_flush_that_fails_is_an_error_and_one_that_is_not_possible_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(number: int) -> Callable:
        def fsync(_: int) -> None:
            raise OSError(number, os.strerror(number))

        return fsync

    write_text(tmp_path / "a", "old")
    monkeypatch.setattr(os, "fsync", refused(5))
    with pytest.raises(OutputError, match="Input/output error|I/O error"):
        write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    monkeypatch.setattr(os, "fsync", refused(22))  # some network file systems
    write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"


@POSIX
def test_permissions_are_those_of_any_new_file_and_a_replaced_file_keeps_its_own(tmp_path: Path) -> None:
    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "x")
        with atomic_write(tmp_path / "private") as partial:  # as libraries write that make a temporary file themselves
            partial.touch(mode=0o600)
        with atomic_write(tmp_path / "folder") as partial:
            partial.mkdir()
            (partial / "private").touch(mode=0o600)
            save_file({"v": torch.ones(1)}, partial / "tensors")
        assert mode(tmp_path / "a") == mode(tmp_path / "private") == 0o640
        assert mode(tmp_path / "folder" / "private") == mode(tmp_path / "folder" / "tensors") == 0o640
        assert mode(tmp_path / "folder") == 0o750
        (tmp_path / "a").chmod(0o604)
        write_text(tmp_path / "a", "y")
        assert mode(tmp_path / "a") == 0o604
    finally:
        os.umask(before)


def test_a_folder_is_not_replaced_by_a_file_nor_a_file_by_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="writing .*folder. Found: a folder of that name. Needed: a name for a file"):
        write_text(tmp_path / "folder", "x")
    with pytest.raises(OutputError, match="Found: a file of that name"), atomic_write(tmp_path / "file") as partial:
        partial.mkdir()
    with pytest.raises(OutputError, match="writing .*a.json. Found: .*(directory|exists)"):
        write_text(tmp_path / "file" / "a.json", "x")
    assert _names(tmp_path) == ["file", "folder"]


@POSIX
def test_a_folder_that_may_not_be_written_to(tmp_path: Path) -> None:
    if os.getuid() == 0:
        pytest.skip("the system refuses the superuser nothing")
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="Permission denied. Name a folder that can be written to"):
            write_text(tmp_path / "a", "x")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need rights on Windows")
def test_a_link_keeps_pointing_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a").write_text("old")
    (tmp_path / "a").symlink_to(tmp_path / "elsewhere" / "a")
    write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").is_symlink() and (tmp_path / "elsewhere" / "a").read_text() == "new"
    assert _names(tmp_path / "elsewhere") == ["a"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_device_is_written_to_directly() -> None:
    write_text("/dev/null", "x")
    with pytest.raises(OutputError, match="No space left on device. Free some space"):
        write_text("/dev/full", "x")
    assert Path("/dev/null").is_char_device()


def test_leftovers_are_recognised_and_nothing_else_is_touched(tmp_path: Path) -> None:
    number = "0123456789ab"
    earlier = "0123456789abcdef" * 2  # as versions before wrote them
    for name in (f".a.json.{number}.part", ".adapter.0.part", f".gone.{earlier}.part", ".notes", ".x.old"):
        (tmp_path / name).touch()
    (tmp_path / f".folder.{number}.old").mkdir()
    (tmp_path / f".kept.{number}.old").mkdir()
    (tmp_path / "kept").mkdir()
    sweep(tmp_path)
    assert _names(tmp_path) == [".notes", ".x.old", "folder", "kept"]
    sweep(tmp_path / "nowhere")
