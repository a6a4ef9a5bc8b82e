"""A process beside the server that holds torch and the models, so that the server stays small and survives it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from orthotune.errors import OrthotuneError
from orthotune.files.json_file import json_line, json_object

#: Seconds without work after which the process ends and gives its memory back.
IDLE = 600.0


class Computing:
    """Calls functions of :mod:`orthotune.studio.computing` in a process of their own, which starts when it is needed.

    Args:
        workspace: the working directory of the process.
        idle: seconds without a call after which the process ends.
    """

    def __init__(self, workspace: Path, idle: float = IDLE) -> None:
        self.workspace, self.idle = workspace, idle
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def call(self, name: str, **arguments: Any) -> Any:
        """The result of a function; calls wait for each other.

        Args:
            name: of the function.
            arguments: of JSON types.

        Raises:
            OrthotuneError: the error of the function, or the process was killed.
        """
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            process = self._running()
            assert process.stdin is not None and process.stdout is not None
            try:
                process.stdin.write(json_line({"call": name, "arguments": arguments}).encode())
                process.stdin.flush()
                answer = process.stdout.readline()
            except OSError:
                answer = b""
            if not answer.endswith(b"\n"):  # nothing, or half of it
                self.close()
                raise OrthotuneError(
                    f"{name}", got="a process that was ended while it computed", needed="enough memory",
                    do="Close what uses memory, or wait for the end of the run, and try again",
                )  # fmt: skip
            self._timer = threading.Timer(self.idle, self._end_if_idle)
            self._timer.daemon = True
            self._timer.start()
        found = json_object(answer.decode())
        if "error" in found:
            raise OrthotuneError(str(found["error"]))
        return found["result"]

    @property
    def number(self) -> int | None:
        """The number of the process; None while there is none."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def close(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def _end_if_idle(self) -> None:
        if self._lock.acquire(blocking=False):
            try:
                self.close()
            finally:
                self._lock.release()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            with suppress(OSError):
                self.close()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "orthotune.studio.computing"],
                cwd=self.workspace, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                start_new_session=True, env=os.environ | {"TQDM_DISABLE": "1"},
            )  # fmt: skip
        return self._process
