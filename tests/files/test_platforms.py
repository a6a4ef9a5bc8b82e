"""Every verb starts, and the lock holds, where modules of POSIX are missing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orthotune.files import platforms
from orthotune.files.locks import FileLock, LockHeld
from orthotune.files.names import is_file_name

SRC = Path(__file__).parents[2] / "src"

#: Before ours is imported: what Windows lacks is not there. The libraries come first, for they look at the platform's
#: name. Locks of Windows, by those of this system.
WITHOUT = """
import os, signal, sys, types
{first}
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None
for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGPIPE", "SIGCHLD", "SIGQUIT"):
    delattr(signal, name) if hasattr(signal, name) else None
for name in ("sched_getaffinity", "getloadavg", "fork", "mkfifo"):
    delattr(os, name) if hasattr(os, name) else None
"""
WINDOWS = """
import fcntl as _fcntl
msvcrt = types.ModuleType("msvcrt")
msvcrt.LK_NBLCK, msvcrt.LK_UNLCK = 2, 0
def locking(number, mode, size):
    how = _fcntl.LOCK_UN if mode == msvcrt.LK_UNLCK else _fcntl.LOCK_EX | _fcntl.LOCK_NB
    try:
        _fcntl.lockf(number, how, size, os.lseek(number, 0, os.SEEK_CUR))
    except OSError:
        raise PermissionError(13, "Permission denied") from None
msvcrt.locking = locking
sys.modules["msvcrt"] = msvcrt
"""
LIBRARIES = """
import peft
from transformers import Trainer
from trl import SFTTrainer
"""
#: The room of files alone, whose locks need none of the libraries: a fraction of a second.
LIGHT = f"""
import sys, types
package = types.ModuleType("orthotune")
package.__path__ = [{str(SRC / "orthotune")!r}]
sys.modules["orthotune"] = package
"""
NO_LOCKS, LIKE_WINDOWS = WITHOUT.format(first=""), WITHOUT.format(first=WINDOWS)


def _run(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)


def test_every_module_of_the_engine_and_every_verb_imports(tmp_path: Path) -> None:
    code = """
import importlib, pkgutil
import orthotune, orthotune.files, orthotune.runs, orthotune.text, orthotune.operations.checkpoint, orthotune.cli
operations = (orthotune.operations, orthotune.operations.checkpoint)
for package in (orthotune.files, orthotune.runs, orthotune.text, *operations, orthotune.cli):
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
os._exit(0)  # what Python takes down at its end takes a second
"""
    done = _run(WITHOUT.format(first=LIBRARIES) + code)
    assert done.returncode == 0, done.stderr


def test_help_of_every_verb() -> None:
    code = """
import typer.main
from orthotune.cli.main import app
import click
from typer.testing import CliRunner
def walk(command, words):
    done = CliRunner().invoke(app, [*words, "--help"])
    assert done.exit_code == 0, (words, done.output)
    print(*words)
    for name in getattr(command, "commands", {}):
        walk(command.commands[name], [*words, name])
walk(typer.main.get_command(app), [])
"""
    done = _run(NO_LOCKS + code)
    assert done.returncode == 0, done.stderr
    for verb in ("train sft", "merge", "convert", "combine", "export", "inspect", "evaluate canny", "bench"):
        assert f"\n{verb}\n" in done.stdout


HOLD = """
import sys
from pathlib import Path
from orthotune.files.locks import FileLock, LockHeld
lock = FileLock(Path(sys.argv[1]))
try:
    lock.acquire()
except LockHeld as held:
    print("held by", held.holder["process"])
except OSError as fault:
    print("no locks:", fault.strerror)
else:
    print("holds", flush=True)
    if "wait" in sys.argv:
        sys.stdin.read()
    lock.release()
"""


@pytest.fixture(params=["", LIKE_WINDOWS], ids=["here", "like Windows"])
def system(request: pytest.FixtureRequest) -> Iterator[str]:
    """What stands before the code: nothing, or what makes this system look like Windows."""
    if request.param and platforms.fcntl is None:
        pytest.skip("the locks of Windows are played by those of POSIX")
    yield request.param


def test_two_processes_never_hold_one_lock(system: str, tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    words = [sys.executable, "-c", system + LIGHT + HOLD, str(path), "wait"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "holds\n"
        second = _run(system + LIGHT + HOLD, str(path))
        assert second.stdout == f"held by {first.pid}\n", second.stderr
        first.kill()
    third = _run(system + LIGHT + HOLD, str(path))
    assert third.stdout == "holds\n", third.stderr
    assert not path.exists()


def test_a_system_without_locks_says_so(tmp_path: Path) -> None:
    assert _run(NO_LOCKS + LIGHT + HOLD, str(tmp_path / ".lock")).stdout == "no locks: this system has no file locks\n"


def test_a_run_begins_without_locks_and_an_export_too(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from orthotune.files.output import resumable
from orthotune.runs.directory import RunDirectory
home = RunDirectory(Path(sys.argv[1]) / "run")
home.open({}, "auto", print)
home.claim({})
with resumable(Path(sys.argv[1]) / "out") as folder:
    (folder / "a").touch()
"""
    done = _run(NO_LOCKS + LIGHT + code, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "cannot be locked (this system has no file locks): do not start it twice" in done.stdout
    assert (tmp_path / "run" / "settings.json").is_file() and (tmp_path / "out" / "a").is_file()


def test_a_lock_of_this_process_is_held_once(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / ".lock")
    lock.acquire()
    lock.acquire()
    with pytest.raises(LockHeld, match=f"process {os.getpid()} on"):
        FileLock(tmp_path / ".lock").acquire()
    lock.release()
    lock.release()
    assert not list(tmp_path.iterdir())


def test_a_holder_that_left_no_number(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / ".lock")
    lock.acquire()
    (tmp_path / ".lock").write_bytes(b"\xff{")
    with pytest.raises(LockHeld, match="another process, which did not leave its number. Wait for its end"):
        FileLock(tmp_path / ".lock").acquire()
    lock.release()


def test_signals_and_processors() -> None:
    assert {one.name for one in platforms.ending_signals()} >= {"SIGINT", "SIGTERM"}
    assert 1 <= platforms.processors() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "a\\b", "/a", "C:a", "CON", "nul.txt", "Lpt1.safetensors", "a\0", 5, None]
)
def test_names_that_mean_something_else_somewhere(name: object) -> None:
    assert not is_file_name(name)


def test_names_of_files() -> None:
    for name in ("a", "model-00001-of-00002.safetensors", ".hidden", "console.json", "ä b"):
        assert is_file_name(name)
