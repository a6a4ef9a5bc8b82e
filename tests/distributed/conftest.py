"""One launch of two processes on this machine, for all tests of this folder and all workers of pytest."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orthotune.recipes import sft, subject
from tests.distributed.jobs import make_files, pictures_of, settings_of

TESTS = Path(__file__).parents[1]
#: folders of the clone that a launched process imports from, as pytest does
PLACES = ("src", ".", "tools/worlds", "worlds/src")
#: seconds after which a launch hangs; it takes about 20 on a quiet core
LONG = 240


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """The folder in which every job of ``jobs.py`` left its run, by name."""
    base = tmp_path_factory.getbasetemp()
    home = (base if worker_id == "master" else base.parent) / "two-processes"
    home.mkdir(exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "launched").exists():
            (home / "launched").touch()
            _launch(home)
    if not (home / "done").exists():
        pytest.fail("the launch of two processes failed, see the first test that asked for it")
    return home


@pytest.fixture(scope="session")
def worker_id(request: pytest.FixtureRequest) -> str:
    """pytest-xdist's name of this worker, also where that is not installed."""
    found: Any = getattr(request.config, "workerinput", {"workerid": "master"})
    return str(found["workerid"])


def _launch(home: Path) -> None:
    make_files(home)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(TESTS.parent / folder) for folder in PLACES),
        "OMP_NUM_THREADS": "1",
        "TINY_MODEL": str(home / "model"),
    }
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2"]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    launcher += ["-m", "tests.distributed.worker", str(home)]
    with (home / "log").open("w") as log:
        running = subprocess.Popen(launcher, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            for name in ("none", "keep"):
                sft.run(settings_of(home, name), say=lambda _: None, bar=False)
            subject.run(pictures_of(home, "pictures-1", processes=1), say=lambda _: None, bar=False)
            status: int | str = running.wait(LONG)
        except subprocess.TimeoutExpired:
            status = f"a hang: not done after {LONG} seconds"
        finally:
            if running.poll() is None:
                os.killpg(running.pid, signal.SIGKILL)
                running.wait()
    if status != 0:
        pytest.fail(f"two processes ended with {status}:\n{(home / 'log').read_text()[-6000:]}")
    (home / "done").touch()
