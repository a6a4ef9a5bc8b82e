"""One process per run directory: a lock of the system's, which ends with the process whatever ended that."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, cast

from orthotune.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class RunLock:
    """``flock`` on a file, which says who holds it and is gone when it was given back.

    A file that a killed process left holds nothing. Where the system or the file system has no locks, ``take`` says
    so and lets the run begin.

    Args:
        path: the file; its folder exists.

    Example:
        >>> import tempfile
        >>> home = Path(tempfile.mkdtemp())
        >>> lock = RunLock(home / ".lock")
        >>> lock.take(print)
        >>> lock.give_back()
        >>> list(home.iterdir())
        []
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None

    def take(self, say: Callable[[str], None] | None = None) -> None:
        """Hold the lock from now on; without effect where this object holds it.

        Raises:
            OutputError: another process holds it; says which one and what to do.
        """
        while self._file is None:
            file = cast(BinaryIO, self.path.open("a+b", buffering=0))
            try:
                if fcntl is None:
                    raise OSError("this system has no flock")
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as fault:
                raise self._held(file) from fault
            except OSError as fault:
                file.close()  # and left there: another process may hold it by a lock that this one cannot ask for
                if say is not None:
                    say(f"{self.path.parent} cannot be locked ({fault.strerror or fault}): do not start it twice.")
                return
            if os.fstat(file.fileno()).st_nlink == 0:
                file.close()  # its holder removed it between our two calls: the name is another file's by now
                continue
            self._file = file
            self._sign(file)

    def give_back(self) -> None:
        """Remove the file and let go; without effect where it is not held."""
        if self._file is not None:
            # In this order: a file that is removed after it was let go may be another process's by then.
            self.path.unlink(missing_ok=True)
            self._file.close()
            self._file = None

    def _sign(self, file: BinaryIO) -> None:
        holder = {"process": os.getpid(), "host": socket.gethostname(), "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}
        with suppress(OSError):  # a full disk: the lock holds without a name
            file.truncate(0)
            file.write(json.dumps(holder).encode() + b"\n")

    def _held(self, file: BinaryIO) -> OutputError:
        end = ""
        with file:
            file.seek(0)
            try:
                holder = json.loads(file.read())
                number, host = int(holder["process"]), str(holder["host"])
                who = f": process {number} on {host} since {holder['since']}"
                end = f" or end it ({'' if host == socket.gethostname() else f'on {host}: '}kill {number})"
            except (OSError, ValueError, KeyError, TypeError):
                who = " in another process, which did not leave its number"
        return OutputError(
            f"output {self.path.parent}",
            got=f"a run, which is still going on{who}",
            do=f"Wait for it{end}, then pass resume=auto; or pass output=PATH for another run",
        )
