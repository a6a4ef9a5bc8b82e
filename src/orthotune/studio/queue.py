"""The queue: one file for each job, so that it survives the page and the server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from orthotune.errors import OrthotuneError, OutputError
from orthotune.files.atomic import write_text
from orthotune.files.json_file import read_json, write_json
from orthotune.files.locks import FileLock, LockHeld, held_by
from orthotune.files.platforms import process_mark
from orthotune.files.run_adapter import FINISHED, LOCK, STARTED
from orthotune.studio.folders import Folders
from orthotune.studio.recipe_text import values_of, with_value

State = Literal["waiting", "starting", "running", "stopping", "finished", "stopped", "interrupted", "failed"]
#: Below the workspace; hidden, so that it is no run.
FOLDER = ".orthotune-studio"
#: States in which a run can be taken up again.
RESUMABLE = ("stopped", "interrupted", "failed")
#: Seconds that two pages wait for each other.
PATIENCE = 5.0


@dataclass(frozen=True)
class Job:
    """One run that was asked for.

    Attributes:
        number: its place in the queue.
        recipe: name in the registry.
        output: the run directory.
        process: mark of the process that trains, once there was one.
        status: exit status of that process; None until it ended, or if nobody waited for its end.
        stopping: whether it was asked to stop.
        place: of the queue that it was put into; another one in a copied folder. Empty in records of older versions.
    """

    number: int
    recipe: str
    output: str
    process: str | None = None
    status: int | None = None
    stopping: bool = False
    place: str = ""


class Queue:
    """The jobs of a workspace.

    Args:
        folders: of the studio.
    """

    def __init__(self, folders: Folders) -> None:
        self.folders, self.folder = folders, folders.workspace / FOLDER
        self.folder.mkdir(exist_ok=True)
        self.place = f"{self.folder.stat().st_ino} {self.folder}"

    def add(self, recipe: str, text: str) -> Job:
        """Put a run at the end of the queue; its recipe file is kept beside it.

        Args:
            recipe: name in the registry.
            text: of the recipe file, which was checked.

        Raises:
            OrthotuneError: a path outside the folders, or an output that is in use.
        """
        values = values_of(text)
        self.folders.check(values)
        with self.changing():
            given = values.get("output") or self._free(recipe, str(values.get("method", "oft")))
            output = self.folders.inside(str(given))
            if any((output / name).exists() for name in (STARTED, FINISHED)):
                raise OutputError(f"output {output}", got="a run", do="Choose another output, or resume that run")
            if any(Path(job.output) == output and self.state(job) in ("waiting", "starting") for job in self.jobs()):
                raise OutputError(f"output {output}", got="a run that waits in the queue", do="Choose another output")
            return self._put(recipe, str(output), with_value(text, "output", str(output)))

    def resume(self, run: Path, recipe: str) -> Job:
        """Put a run that did not finish at the end of the queue; it goes on from its newest checkpoint.

        Args:
            run: its directory.
            recipe: name in the registry.

        Raises:
            OrthotuneError: the run is going on, waits, or is finished.
        """
        with self.changing():
            before = next((job for job in self.jobs() if Path(job.output) == run), None)
            state = self.state(before) if before else run_state(run)
            if state not in RESUMABLE:
                raise OrthotuneError(f"run {run}", got=f"{state}", needed="a run that has stopped")
            # The settings of a run that has begun are in its directory, and need not be given again.
            text = self.text(before) if before and not (run / STARTED).is_file() else ""
            text = with_value(text, "output", str(run))
            self.folders.check(values_of(text))  # that of a copied folder may name the data of the original
            if before:
                self._forget(before)
            return self._put(recipe, str(run), text)

    def stop(self, job: Job) -> None:
        """Take a waiting job out of the queue; ask a running one to save a checkpoint and end.

        Args:
            job: of this queue.

        Raises:
            OrthotuneError: nothing of it is running.
        """
        with self.changing():
            job = next((one for one in self.jobs() if one.number == job.number), job)  # begun since the page was made
            state = self.state(job)
            if state == "waiting":
                self._forget(job)
                return
            if state not in ("starting", "running", "stopping"):
                raise OrthotuneError(f"job {job.number}", got=state, needed="a job that waits or runs")
            if state != "stopping":  # a second signal would not wait for the checkpoint
                _ask_to_end(Path(job.output), job)
                self.change(replace(job, stopping=True))

    def remove(self, job: Job) -> None:
        """Take a job that has ended off the list; its run directory stays.

        Args:
            job: of this queue.

        Raises:
            OrthotuneError: the job is running.
        """
        if self.state(job) in ("starting", "running", "stopping"):
            raise OrthotuneError(f"job {job.number}", got="a job that is running", do="Stop it first")
        self._forget(job)

    def jobs(self) -> list[Job]:
        """All jobs, in the order of the queue."""
        found = []
        for path in sorted(self.folder.glob("[0-9]*.json")):
            try:
                record = read_json(path)
                job = Job(**{key: record[key] for key in record.keys() & Job.__dataclass_fields__.keys()})
            except (OrthotuneError, OSError, TypeError):
                continue  # removed in another tab, or not ours
            known = isinstance(job.recipe, str) and isinstance(job.place, str)
            if job.number == _number(path) and known and _is_path(job.output) and _is_mark(job):
                found.append(self._here(job))  # of another version otherwise, or damaged
        return found

    def is_copied(self, job: Job) -> bool:
        """Whether a job was put into the queue of another folder, of which this one is a copy, or before it was moved.

        Nobody asked for it here: its process is none of this folder, and it does not begin by itself.

        Args:
            job: of this queue.
        """
        if job.place:
            return job.place != self.place
        return not Path(job.output).is_relative_to(self.folders.workspace)

    def _here(self, job: Job) -> Job:
        """The job, in the copy of its folder."""
        _, _, before = job.place.partition(" ")
        if not before or not self.is_copied(job) or not Path(job.output).is_relative_to(Path(before).parent):
            return job
        inner = Path(job.output).relative_to(Path(before).parent)
        return replace(job, output=str(self.folders.workspace / inner))

    def state(self, job: Job) -> State:
        """What became of a job, read from its run directory and its process."""
        output = Path(job.output)
        if self.is_copied(job):
            return run_state(output)
        alive = job.process is not None and process_mark(int(job.process.split()[0])) == job.process
        if alive and job.status is None:
            if job.stopping:
                return "stopping"
            return "running" if (output / STARTED).is_file() and held_by(output / LOCK) is not None else "starting"
        if job.process is None:
            return "waiting"
        if (output / FINISHED).is_file() and job.status in (0, None):
            return "finished"
        if job.status is None:
            return "interrupted"
        stopped = job.status in (-signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGINT)
        return "stopped" if stopped else "failed"

    def change(self, job: Job) -> None:
        """Write the record of a job.

        Args:
            job: with its new values.
        """
        write_json(self._record(job.number), asdict(job))

    def text(self, job: Job) -> str:
        """The recipe file of a job."""
        return self.recipe_file(job).read_text(encoding="utf-8")

    def recipe_file(self, job: Job) -> Path:
        """Where the recipe file of a job lies."""
        return self.folder / f"{job.number:05d}.yaml"

    def log_file(self, job: Job) -> Path:
        """Where the output of its process is written."""
        return self.folder / f"{job.number:05d}.log"

    def keep_going(self) -> None:
        """See to it that a process takes the waiting jobs one after another; it survives the server."""
        lock = self.folder / "runner.lock"
        if held_by(lock) is None and any(self.state(job) == "waiting" for job in self.jobs()):
            subprocess.Popen(
                [sys.executable, "-m", "orthotune.studio.runner", str(self.folders.workspace)],
                cwd=self.folders.workspace, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def _put(self, recipe: str, output: str, text: str) -> Job:
        used = [number for path in self.folder.glob("[0-9]*.yaml") if (number := _number(path)) is not None]
        job = Job(max(used, default=0) + 1, recipe, output, place=self.place)
        write_text(self.recipe_file(job), with_value(text, "resume", "auto"))
        self.change(job)
        return job

    def _forget(self, job: Job) -> None:
        self._record(job.number).unlink(missing_ok=True)

    def _record(self, number: int) -> Path:
        return self.folder / f"{number:05d}.json"

    def _free(self, recipe: str, method: str) -> str:
        """A name for a run directory that nothing uses."""
        waiting = {job.output for job in self.jobs()}
        number, name = 1, f"runs/{recipe}-{method}"
        while (path := self.folders.workspace / name).exists() or str(path) in waiting:
            number += 1
            name = f"runs/{recipe}-{method}-{number}"
        return name

    @contextmanager
    def changing(self, patience: float = PATIENCE) -> Iterator[None]:
        """Hold the queue for a change that begins with a look at it; pages and the runner wait for each other.

        Args:
            patience: seconds to wait for another process.

        Raises:
            LockHeld: another process has held it for longer.
        """
        lock, until = FileLock(self.folder / "queue.lock"), time.monotonic() + patience
        while True:
            try:
                lock.acquire()
                break
            except LockHeld:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
        try:
            yield
        finally:
            lock.release()


def _number(path: Path) -> int | None:
    return int(path.stem) if path.stem.isascii() and path.stem.isdigit() else None


def _is_path(output: Any) -> bool:
    return isinstance(output, str) and "\0" not in output and Path(output).is_absolute()


def _is_mark(job: Job) -> bool:
    """Whether the process of a job is none, or begins with a number, and its status is a number."""
    process: Any = job.process
    words = process.split()[:1] if isinstance(process, str) else []
    return (process is None or (bool(words) and words[0].isdecimal())) and isinstance(job.status, int | None)


def run_state(run: Path) -> State:
    """What became of a run that the queue does not know, as one of the command line.

    Args:
        run: its directory.
    """
    if held_by(run / LOCK) is not None:
        return "running"
    return "finished" if (run / FINISHED).is_file() else "interrupted"


def ask_run(run: Path, name: str) -> None:
    """Ask the process that trains in a run directory for something after its present step.

    Args:
        run: the directory.
        name: of the request, a key of :data:`orthotune.runs.requests.FILES`.

    Raises:
        OrthotuneError: nothing is running there.
        OutputError: the directory cannot be written to.
    """
    if held_by(run / LOCK) is None:
        raise OrthotuneError(f"run {run}", got="no process that trains there", needed="a run that is going on")
    write_text(run / name, "")


def stop_run(run: Path) -> None:
    """Ask the process that trains in a run directory to save a checkpoint and end.

    Args:
        run: the directory.

    Raises:
        OrthotuneError: nothing is running there, or on another machine.
    """
    _ask_to_end(run, None)


def _ask_to_end(run: Path, job: Job | None) -> None:
    """Signal the process that holds the lock of the run, or, before it has it, the process of the job."""
    holder: dict[str, Any] = held_by(run / LOCK) or {}
    if holder and holder["host"] != socket.gethostname():  # its number belongs to another process here
        raise OrthotuneError(f"run {run}", got=f"a process of {holder['host']} that trains there",
                             needed="one of this machine", do="Stop it there")  # fmt: skip
    number = holder.get("process") if holder else int(job.process.split()[0]) if job and job.process else None
    if number is None or process_mark(int(number)) is None:
        raise OrthotuneError(f"run {run}", got="no process that trains there", do="Resume it, if it did not finish")
    os.kill(int(number), signal.SIGTERM)
