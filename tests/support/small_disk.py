"""A disk that is full, for the accidents of a run."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A file system of ``size`` bytes at ``folder``; without the right to mount one the test is skipped."""
    libc = ctypes.CDLL(None, use_errno=True)
    folder.mkdir()
    if not sys.platform.startswith("linux") or libc.mount(b"tmpfs", bytes(folder), b"tmpfs", 0, b"size=%d" % size):
        pytest.skip("a small file system cannot be mounted here")
    try:
        yield
    finally:
        libc.umount2(bytes(folder), 2)


def fill(folder: Path, left: int = 24 * 1024) -> Path:
    """What another process might do: take all the space but ``left`` bytes; the file that takes it."""
    found = os.statvfs(folder)
    filler = folder / "filler"
    filler.write_bytes(bytes(max(0, found.f_bavail * found.f_frsize - left)))
    return filler


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Within it the system lets no file of this process grow beyond ``size`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
