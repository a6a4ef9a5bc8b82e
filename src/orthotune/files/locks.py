"""Locks between processes, by the operating system, which releases them when a process ends for any reason."""

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
    """Another process holds the lock.

    Args:
        path: the lock file.
        holder: ``process``, ``host`` and ``since`` of the other process; empty if unknown.
    """

    def __init__(self, path: Path, holder: dict[str, Any]) -> None:
        self.holder = holder
        super().__init__(f"{path}", got=f"a lock of {self.by()}", do=f"Wait for its end{self.command()}")

    def by(self) -> str:
        """Who holds the lock: the process, its host, and since when."""
        if not self.holder:
            return "another process, which did not leave its number"
        return "process {process} on {host} since {since}".format(**self.holder)

    def command(self) -> str:
        """The command that ends that process, to be appended to a sentence; empty if the process is unknown."""
        if not self.holder:
            return ""
        host = self.holder["host"]
        where = "" if host == socket.gethostname() else f"on {host}: "
        return f" or end it ({where}kill {self.holder['process']})"


class FileLock:
    """A lock on a file. The file names the holder and is removed when the lock is released.

    ``flock`` on Linux and macOS, ``msvcrt.locking`` on Windows. The file of a killed process is no longer locked.

    Args:
        path: the lock file; its folder must exist.

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
        """Acquire the lock; without effect if this object holds it already.

        Raises:
            LockHeld: another process, or another object in this process, holds the lock.
            OSError: the system or the file system has no locks, or the file cannot be created.
        """
        while self._file is None:
            file = cast(BinaryIO, self.path.open("a+b", buffering=0))
            try:
                platforms.lock(file)
            except BlockingIOError as fault:
                with file:
                    raise LockHeld(self.path, _holder(file)) from fault
            except OSError:
                file.close()  # not removed: another process may hold a lock of a kind that this system cannot check
                raise
            if os.fstat(file.fileno()).st_nlink == 0:
                file.close()  # its holder removed it between the two calls: the name may belong to another file now
                continue
            self._file = file
            holder = {"process": os.getpid(), "host": socket.gethostname()}
            with suppress(OSError):  # on a full disk the lock is held without naming its holder
                file.truncate(0)
                file.write(json_line(holder | {"since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}).encode())

    def release(self) -> None:
        """Remove the file and release the lock; without effect if the lock is not held."""
        if self._file is None:
            return
        file, self._file = self._file, None
        if platforms.REMOVES_OPEN_FILES:
            # In this order: once unlocked, the file may belong to another process.
            self.path.unlink(missing_ok=True)
            file.close()
        else:
            platforms.unlock(file)
            file.close()
            with suppress(OSError):  # Windows refuses while another process has the file open and now holds the lock
                self.path.unlink(missing_ok=True)


def held_by(path: Path) -> dict[str, Any] | None:
    """Who holds a lock file now: ``process``, ``host`` and ``since``, empty if unknown; None if nobody holds it.

    Nothing is created. The lock is tried only where the process that the file names is running, so that a process
    that is just acquiring the lock is not disturbed.

    Args:
        path: the lock file.

    Example:
        >>> import tempfile
        >>> lock = FileLock(Path(tempfile.mkdtemp(), ".lock"))
        >>> lock.acquire()
        >>> held_by(lock.path)["process"] == os.getpid()
        True
        >>> lock.release()
        >>> held_by(lock.path) is None
        True
    """
    try:
        file = cast(BinaryIO, path.open("r+b", buffering=0))
    except OSError:
        return None
    with file:
        holder = _holder(file)
        if not holder or holder["host"] != socket.gethostname():
            return holder
        if platforms.process_mark(holder["process"]) is None:
            return None
        try:
            platforms.lock(file)
        except OSError:
            return holder
        platforms.unlock(file)
    return None


def _holder(file: BinaryIO) -> dict[str, Any]:
    try:
        file.seek(0)
        holder = json_object(file.read().decode())
        return {"process": int(holder["process"]), "host": str(holder["host"]), "since": str(holder["since"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
