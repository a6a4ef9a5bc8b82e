"""The queue is its files, and a run is its directory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orthotune.errors import OrthotuneError
from orthotune.files.locks import held_by
from orthotune.files.platforms import process_mark
from orthotune.studio.folders import Folders
from orthotune.studio.queue import Queue, run_state, stop_run
from orthotune.studio.recipe_text import values_of

#: A process that holds a run's lock until it is asked to end, as a training does.
HOLDER = """
import signal, sys, threading
from pathlib import Path
from orthotune.files.locks import FileLock
ended = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: ended.set())
lock = FileLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
ended.wait()
lock.release()
sys.exit(143)
"""


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(Folders([tmp_path]))


def _training(run: Path) -> subprocess.Popen[str]:
    run.mkdir(parents=True)
    (run / "settings.json").write_text('{"recipe": "sft", "steps": 9}')
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(run / ".lock")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_job_is_its_files_and_has_an_output_of_its_own(queue: Queue, tmp_path: Path) -> None:
    first = queue.add("sft", "# mine\nmethod: lora\n")
    second = queue.add("sft", "method: lora\n")
    assert [Path(job.output).relative_to(tmp_path).as_posix() for job in (first, second)] == [
        "runs/sft-lora",
        "runs/sft-lora-2",
    ]
    again = Queue(Folders([tmp_path]))
    assert again.jobs() == [first, second] and again.state(first) == "waiting"
    assert values_of(again.text(first)) == {"method": "lora", "output": first.output, "resume": "auto"}
    again.stop(first)
    assert queue.jobs() == [second]
    assert queue.add("sft", "").number == 3, "the number of a removed job is not used again"


def test_outputs_that_are_outside_or_in_use_are_refused(queue: Queue, tmp_path: Path) -> None:
    queue.add("sft", "output: runs/a\n")
    (tmp_path / "runs" / "b").mkdir(parents=True)
    (tmp_path / "runs" / "b" / "settings.json").write_text("{}")
    for text, message in (("output: ../x\n", "outside"), ("output: runs/a\n", "waits in the queue"),
                          ("output: runs/b\n", "a run"), ("data: /etc/passwd\n", "outside")):  # fmt: skip
        with pytest.raises(OrthotuneError, match=message):
            queue.add("sft", text)
    assert len(queue.jobs()) == 1


def test_a_run_is_stopped_by_the_process_that_holds_it(queue: Queue) -> None:
    job = queue.add("sft", "output: runs/a\n")
    run = Path(job.output)
    process = _training(run)
    job = replace(job, process=process_mark(process.pid))
    queue.change(job)
    assert queue.state(job) == "running" and run_state(run) == "running"
    with pytest.raises(OrthotuneError, match="Stop it first"):
        queue.remove(job)
    with pytest.raises(OrthotuneError, match="a run that has stopped"):
        queue.resume(run, "sft")
    queue.stop(job)
    assert process.wait(60) == 143
    job = replace(queue.jobs()[0], status=143)
    assert queue.state(job) == "stopped" and held_by(run / ".lock") is None
    queue.change(job)
    resumed = queue.resume(run, "sft")
    assert queue.jobs() == [resumed] and resumed.number == 2 and queue.state(resumed) == "waiting"
    assert values_of(queue.text(resumed)) == {"output": str(run), "resume": "auto"}


def test_a_killed_run_is_interrupted_and_nothing_else_is_signalled(queue: Queue) -> None:
    job = queue.add("sft", "output: runs/a\n")
    run = Path(job.output)
    process = _training(run)
    job = replace(job, process=process_mark(process.pid))
    queue.change(job)
    process.kill()
    # Not waited for yet: what has ended is not running.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert queue.state(job) == "interrupted" and run_state(run) == "interrupted"
    process.wait()
    # A machine that was started again may have given the number to another process: this one.
    (run / ".lock").write_text(json.dumps({"process": os.getpid(), "host": os.uname().nodename, "since": "today"}))
    assert run_state(run) == "interrupted" and held_by(run / ".lock") is None
    with pytest.raises(OrthotuneError, match="no process that trains there"):
        stop_run(run)
    assert queue.state(replace(job, status=2)) == "failed"
    assert queue.state(replace(job, status=-signal.SIGTERM)) == "stopped"
    (run / "run.json").write_text("{}")
    assert queue.state(job) == "finished"


def test_a_run_of_another_machine_signals_no_process_of_this_one(tmp_path: Path) -> None:
    """On a shared disk the lock names a number of the other machine, which belongs to somebody else here."""
    run = tmp_path / "a"
    run.mkdir()
    bystander = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    (run / ".lock").write_text(json.dumps({"process": bystander.pid, "host": "elsewhere", "since": "today"}))
    with pytest.raises(OrthotuneError, match="a process of elsewhere"):
        stop_run(run)
    bystander.communicate(b"\n")
    assert bystander.returncode == 0


def test_a_job_that_began_since_is_asked_to_end(queue: Queue) -> None:
    """The page of a moment ago says that it waits."""
    waiting = queue.add("sft", "output: runs/a\n")
    process = _training(Path(waiting.output))
    queue.change(replace(waiting, process=process_mark(process.pid)))
    queue.stop(waiting)
    assert process.wait(60) == 143 and queue.jobs()[0].stopping


def test_what_is_no_job_is_passed_over(queue: Queue) -> None:
    job = queue.add("sft", "")
    (queue.folder / "00009.json").write_text("{")
    (queue.folder / "00010.json").write_text('{"number": 10}')
    whole = {"number": 11, "recipe": "sft", "output": "/a/b"}
    for other in ({"process": "x y"}, {"process": 5}, {"process": ""}, {"status": "0"}, {"number": 12}, {"recipe": 1},
                  {"output": ["/a"]}, {"output": "a"}, {"output": "/a\0"}):  # fmt: skip
        (queue.folder / "00011.json").write_text(json.dumps(whole | other))
        assert queue.jobs() == [job], other
    assert queue.jobs() == [job]
