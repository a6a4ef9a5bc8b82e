"""The process that takes the jobs of a queue one after another: ``python -m orthotune.studio.runner WORKSPACE``.

It ends when no job waits. Without it a training goes on, and the next runner waits for that one's end.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from orthotune.files.locks import FileLock, LockHeld
from orthotune.files.platforms import process_mark
from orthotune.studio.folders import Folders
from orthotune.studio.queue import Job, Queue

#: Seconds between two looks at a training that another runner started.
PAUSE = 0.5
#: Seconds that it waits for a page to let the queue go: nobody else writes how a training ended.
PATIENCE = 600.0


def run(queue: Queue) -> None:
    """Run waiting jobs until there are none; without effect where another process does it.

    Args:
        queue: of the workspace.
    """
    lock = FileLock(queue.folder / "runner.lock")
    with suppress(LockHeld):
        while _next(queue) is not None:  # looked at again without the lock: a job may have come while it was released
            lock.acquire()
            try:
                while (job := _next(queue)) is not None:
                    _run(queue, job)
            finally:
                lock.release()


def _next(queue: Queue) -> Job | None:
    return next((job for job in queue.jobs() if queue.state(job) == "waiting"), None)


def _run(queue: Queue, job: Job) -> None:
    while any(queue.state(other) in ("starting", "running", "stopping") for other in queue.jobs()):
        time.sleep(PAUSE)
    words = ["train", job.recipe, str(queue.recipe_file(job))]
    # A log grows, and a resumed run adds to it.
    with queue.changing(PATIENCE), queue.log_file(job).open("ab") as log:
        if job not in queue.jobs():  # taken out of the queue
            return
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "orthotune.cli.main", *words],
            cwd=queue.folders.workspace, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True, env=os.environ | {"TQDM_DISABLE": "1"},
        )  # fmt: skip
        started = replace(job, process=process_mark(process.pid) or str(process.pid))
        queue.change(started)
    status = process.wait()
    with queue.changing(PATIENCE):
        now = next((one for one in queue.jobs() if one.number == job.number), started)
        queue.change(replace(now, status=status))


if __name__ == "__main__":
    run(Queue(Folders([Path(sys.argv[1])])))
