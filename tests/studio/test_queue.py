"""The queue is its files, and a run is its directory."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orthotune.errors import OrthotuneError
from orthotune.files.locks import held_by
from orthotune.files.platforms import process_mark
from orthotune.runs.requests import FILES
from orthotune.studio.folders import Folders
from orthotune.studio.queue import Queue, ask_run, run_state, stop_run
from orthotune.studio.recipe_text import values_of
from orthotune.studio.runner import run as run_jobs

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


def test_a_copied_folder_starts_nothing_and_touches_nothing_of_the_original(tmp_path: Path) -> None:
    """Waiting jobs of a copy were asked for elsewhere; a training of the original is not one of the copy."""
    original = tmp_path / "work"
    original.mkdir()
    queue = Queue(Folders([original]))
    waiting, going = queue.add("sft", "output: runs/a\n"), queue.add("sft", "output: runs/b\n")
    process = _training(original / "runs" / "b")
    queue.change(replace(going, process=process_mark(process.pid)))
    assert [queue.state(job) for job in queue.jobs()] == ["waiting", "running"]
    shutil.copytree(original, tmp_path / "copy")
    copy = Queue(Folders([tmp_path / "copy"]))
    found = copy.jobs()
    assert [job.output for job in found] == [str(tmp_path / "copy" / "runs" / name) for name in "ab"]
    assert [copy.state(job) for job in found] == ["interrupted"] * 2
    for job in found:
        with pytest.raises(OrthotuneError, match="interrupted"):
            copy.stop(job)
    run_jobs(copy)  # the process that takes waiting jobs finds none
    assert not (tmp_path / "copy" / "runs" / "a").exists() and process.poll() is None
    resumed = copy.resume(tmp_path / "copy" / "runs" / "a", "sft")
    assert copy.state(resumed) == "waiting" and values_of(copy.text(resumed))["output"] == resumed.output
    assert Path(resumed.output).is_relative_to(tmp_path / "copy")
    (tmp_path / "copy" / "runs" / "b" / "run.json").write_text("{}")
    assert copy.state(copy.jobs()[0]) == "finished"
    # Nothing changed in the original.
    assert [queue.state(job) for job in queue.jobs()] == ["waiting", "running"] and queue.jobs()[0] == waiting
    process.terminate()
    process.wait(60)


def test_a_waiting_job_of_a_copy_that_names_the_data_of_the_original_is_refused(tmp_path: Path) -> None:
    original = tmp_path / "work"
    (original / "photos").mkdir(parents=True)
    Queue(Folders([original])).add("t2i", f"data: {original / 'photos'}\noutput: runs/a\n")
    shutil.copytree(original, tmp_path / "copy")
    copy = Queue(Folders([tmp_path / "copy"]))
    with pytest.raises(OrthotuneError, match="data: .*outside the folders"):
        copy.resume(tmp_path / "copy" / "runs" / "a", "t2i")


def test_records_of_an_older_version_in_a_copy_start_nothing(queue: Queue, tmp_path: Path) -> None:
    record = {"number": 7, "recipe": "sft", "process": None, "status": None, "stopping": False}
    for output, state in ((tmp_path / "runs" / "a", "waiting"), (tmp_path.parent / "elsewhere" / "a", "interrupted")):
        (queue.folder / "00007.json").write_text(json.dumps(record | {"output": str(output)}))
        assert [queue.state(job) for job in queue.jobs()] == [state]


@pytest.mark.parametrize("name", ["sample-now", "save-now", "finish-now"])
def test_a_run_is_asked_by_a_file(tmp_path: Path, name: str) -> None:
    process = _training(tmp_path / "runs" / "a")
    ask_run(tmp_path / "runs" / "a", name)
    assert (tmp_path / "runs" / "a" / name).is_file() and name in FILES
    process.terminate()
    process.wait(60)
    (tmp_path / "runs" / "a" / name).unlink()
    with pytest.raises(OrthotuneError, match="no process that trains there"):
        ask_run(tmp_path / "runs" / "a", name)
    assert not (tmp_path / "runs" / "a" / name).exists()
