"""Locks between processes: the operating system's own, which end with the process however that ended."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

from orthotune.errors import OutputError
from orthotune.files import platforms
from orthotune.files.json_file import json_line, json_object


class LockHeld(OutputError):
    """Another process holds the lock; ``holder`` is its ``process``, ``host`` and ``since``, empty if not known."""

    def __init__(self, path: Path, holder: dict[str, Any]) -> None:
        self.holder = holder
        super().__init__(f"{path}", got=f"a lock of {self.by()}", do=f"Wait for its end{self.command()}")

    def by(self) -> str:
        """Who holds the lock: the process, its host, and since when."""
        if not self.holder:
            return "another process, which did not leave its number"
        return "process {process} on {host} since {since}".format(**self.holder)

    def command(self) -> str:
        """How that process can be ended, to be appended to a sentence; empty if it is not known."""
        if not self.holder:
            return ""
        host = self.holder["host"]
        where = "" if host == socket.gethostname() else f"on {host}: "
        return f" or end it ({where}kill {self.holder['process']})"


class FileLock:
    """A lock on a file, which says who holds it and is removed when the lock is released.

    ``flock`` on Linux and macOS, ``msvcrt.locking`` on Windows. A file that a killed process left locks nothing.

    Args:
        path: the file; its folder exists.

    Example:
        >>> import tempfile
        >>> lock = FileLock(Path(tempfile.mkdtemp(), ".lock"))
        >>> lock.acquire()
        >>> try:
        ...     FileLock(lock.path).acquire()
        ... except LockHeld as error:
        ...     error.holder["process"] == os.getpid()
        True
        >>> lock.release()
        >>> lock.path.exists()
        False
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None

    def acquire(self) -> None:
        """Hold the lock from now on; without effect where this object holds it.

        Raises:
            LockHeld: another process holds it, or another object in this one.
            OSError: the system or the file system has no locks, or the file cannot be made.
        """
        while self._file is None:
            file = cast(BinaryIO, self.path.open("a+b", buffering=0))
            try:
                platforms.lock(file)
            except BlockingIOError as fault:
                with file:
                    raise LockHeld(self.path, _holder(file)) from fault
            except OSError:
                file.close()  # and left there: another process may hold it by a lock that this one cannot ask for
                raise
            if os.fstat(file.fileno()).st_nlink == 0:
                file.close()  # its holder removed it between our two calls: the name is another file's by now
                continue
            self._file = file
            holder = {"process": os.getpid(), "host": socket.gethostname()}
            with suppress(OSError):  # a full disk: the lock holds without a name
                file.truncate(0)
                file.write(json_line(holder | {"since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}).encode())

    def release(self) -> None:
        """Remove the file and let others acquire the lock; without effect where it is not held."""
        if self._file is None:
            return
        file, self._file = self._file, None
        if platforms.REMOVES_OPEN_FILES:
            # In this order: a file that is removed after it was unlocked may be another process's by then.
            self.path.unlink(missing_ok=True)
            file.close()
        else:
            platforms.unlock(file)
            file.close()
            with suppress(OSError):  # refused while another process has it open, and then it is that one's
                self.path.unlink(missing_ok=True)


def _holder(file: BinaryIO) -> dict[str, Any]:
    try:
        file.seek(0)
        found = json_object(file.read().decode())
        return {"process": int(found["process"]), "host": str(found["host"]), "since": str(found["since"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
