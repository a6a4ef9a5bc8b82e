"""Differences between operating systems. Only this file imports modules that some systems lack."""

from __future__ import annotations

import errno
import os
import platform
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

fcntl: Any
msvcrt: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
try:
    import msvcrt
except ImportError:  # Linux, macOS
    msvcrt = None

#: On Windows a lock makes a range of bytes unreadable for others: a byte far beyond the content of a lock file.
LOCKED_BYTE = 1 << 30
#: Whether an open file can be removed; Windows refuses.
REMOVES_OPEN_FILES = sys.platform != "win32" and fcntl is not None
_NOT_POSSIBLE = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def lock(file: BinaryIO) -> None:
    """Lock an open file for this process without waiting; the lock ends with :func:`unlock` or with the process.

    Args:
        file: opened for writing, unbuffered.

    Raises:
        BlockingIOError: another process, or another open file of this one, has locked it.
        OSError: this system or this file system has no locks.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    elif msvcrt is not None:
        file.seek(LOCKED_BYTE)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as fault:
            if fault.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
                raise BlockingIOError(errno.EAGAIN, "another process has locked it") from fault
            raise
        finally:
            file.seek(0)
    else:
        raise OSError(errno.ENOSYS, "this system has no file locks")


def unlock(file: BinaryIO) -> None:
    """Release the lock of :func:`lock`."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_UN)
    elif msvcrt is not None:
        file.seek(LOCKED_BYTE)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)


def flush_file(path: Path) -> None:
    """Flush the bytes of a file to the disk, where the file system supports this.

    Raises:
        OSError: the bytes could not be written.
    """
    # Windows flushes only files that are open for writing. Elsewhere reading is enough, and a file may be read-only.
    _flush(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)


def flush_folder(path: Path) -> None:
    """Flush the names in a folder to the disk. Does nothing on Windows, which cannot open folders and needs no flush.

    Raises:
        OSError: the names could not be written.
    """
    if sys.platform == "win32":
        return
    with suppress(PermissionError):  # a folder that can be written to but not listed
        _flush(path, os.O_RDONLY)


def _flush(path: Path, flags: int) -> None:
    opened = os.open(path, flags)
    try:
        os.fsync(opened)
    except OSError as fault:
        if fault.errno not in _NOT_POSSIBLE:
            raise
    finally:
        os.close(opened)


def ending_signals() -> tuple[signal.Signals, ...]:
    """The signals that ask a program to end, as far as this system supports them.

    Example:
        >>> ending_signals()[0].name
        'SIGINT'
    """
    names = ("SIGINT", "SIGTERM", "SIGBREAK")
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))


def asking_signals() -> tuple[signal.Signals, ...]:
    """The signals whose meaning a program defines, SIGUSR1 and SIGUSR2; none on Windows.

    Example:
        >>> all(one.name.startswith("SIGUSR") for one in asking_signals())
        True
    """
    return tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGUSR2") if hasattr(signal, name))


def processors() -> int:
    """The number of processors that this process may use.

    Example:
        >>> processors() >= 1
        True
    """
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def processor_name() -> str:
    """The model name of the processor.

    Example:
        >>> bool(processor_name())
        True
    """
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def load_average() -> float | None:
    """Load average of the last minute; None where the system has none.

    Example:
        >>> (load_average() or 0.0) >= 0
        True
    """
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


def process_mark(number: int) -> str | None:
    """What tells a running process from a later one of the same number; None if no such process is running.

    On Linux the number, the time of its start and the boot of the machine, on other systems the number alone. A
    process that has ended and was not waited for by its parent is not running.

    Args:
        number: of the process.

    Example:
        >>> process_mark(os.getpid()) == process_mark(os.getpid()), process_mark(2**30)
        (True, None)
    """
    try:
        state, *fields = Path(f"/proc/{number}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return None if state in "ZX" else f"{number} {fields[18]} {boot}"
    except (OSError, ValueError, IndexError):
        if sys.platform in ("linux", "win32"):  # on Windows, signal 0 would end the process
            return None
    try:
        os.kill(number, 0)
    except PermissionError:
        pass
    except OSError:
        return None
    return str(number)


def has_signals() -> bool:
    """Whether a process can be asked to end by a signal that it can handle.

    Example:
        >>> has_signals() == (sys.platform != "win32")
        True
    """
    return sys.platform != "win32"
