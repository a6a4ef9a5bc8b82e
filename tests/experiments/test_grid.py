"""Runs beside each other, and what becomes of them when the comparison is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from orthotune.experiments import grid

TESTS = Path(__file__).parents[1]
PROGRAM = """
from tests.experiments.test_grid import start
if __name__ == "__main__":
    start()
"""


def wait(settings: Any, say: Any = print, *, bar: bool = True) -> int:
    """A run that says who it is and takes long."""
    Path(settings, f"{os.getpid()}.pid").touch()
    time.sleep(120)
    return 0


def start() -> None:
    folder = sys.argv[1]
    list(grid.records(wait, [("a", folder), ("b", folder)], 2, print))


def _alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="asks Linux whether a process is alive")
def test_runs_end_with_a_killed_comparison(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    found = tmp_path / "found"
    found.mkdir()
    path = os.pathsep.join([str(TESTS.parent), str(TESTS.parent / "src"), os.environ.get("PYTHONPATH", "")])
    running = subprocess.Popen([sys.executable, str(program), str(found)], env={**os.environ, "PYTHONPATH": path})
    try:
        until = time.monotonic() + 90
        while len(list(found.iterdir())) < 2 and time.monotonic() < until:
            time.sleep(0.2)
        runs = [int(path.stem) for path in found.iterdir()]
        assert len(runs) == 2 and all(_alive(run) for run in runs)
        running.send_signal(signal.SIGKILL)
        running.wait()
        until = time.monotonic() + 30
        while any(_alive(run) for run in runs) and time.monotonic() < until:
            time.sleep(0.2)
        assert not [run for run in runs if _alive(run)]
    finally:
        running.kill()
