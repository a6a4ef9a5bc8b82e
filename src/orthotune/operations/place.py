"""Outputs appear by rename: a folder is built beside its place and moved there when it is whole."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orthotune.errors import OutputError


@contextmanager
def new_folder(out: Path, *, overwrite: bool = False, named: str = "--out") -> Iterator[Path]:
    """A temporary folder beside ``out`` that becomes ``out`` when the block ends well, and is removed when it does not.

    Args:
        out: the place; its parents are made.
        overwrite: replace what is there; otherwise only an empty folder may be there.
        named: how the verb calls the place, for messages.

    Raises:
        OutputError: something is there already, or the place cannot be written to. Nothing was changed.

    Example:
        >>> with new_folder(Path("merged")) as folder:  # doctest: +SKIP
        ...     (folder / "config.json").write_text("{}")
    """
    out = out.absolute()
    if out.exists() and not out.is_dir():
        raise OutputError(f"{named} {out}", got="a file", needed="a folder, or a name that is free")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise OutputError(f"{named} {out}", got="a folder that is not empty", do="Add --overwrite, or name another")
    partial = _partial(out, f".{out.name}.{os.getpid()}.partial", named)
    try:
        yield partial
        _exchange(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def lasting(out: Path, *, file: bool = False, overwrite: bool = False, resume: bool = True) -> Iterator[Path]:
    """As :func:`new_folder`, for a file, too; and what was written stays beside ``out`` when it is interrupted.

    The same call finds it again. An error other than an interruption removes it.

    Args:
        out: the place; its parents are made.
        file: ``out`` is a file, built under its own name in the temporary folder.
        overwrite: replace what is there.
        resume: whether anything is kept and found again.

    Raises:
        OutputError: something is there already, the place cannot be written to, or another process is writing to it.
        Nothing was changed.

    Example:
        >>> with lasting(Path("merged.safetensors"), file=True) as folder:  # doctest: +SKIP
        ...     (folder / "merged.safetensors").write_bytes(b"")
    """
    out = out.absolute()
    if out.exists() and out.is_dir() == file:
        wanted = "a file" if file else "a folder"
        got = "a folder" if file else "a file"
        raise OutputError(f"OUT {out}", got=got, needed=f"{wanted}, or a name that is free")
    taken = out.exists() and (file or any(out.iterdir()))
    if taken and not overwrite:
        got = "a file" if file else "a folder that is not empty"
        raise OutputError(f"OUT {out}", got=got, do="Add --overwrite, or name another")
    partial = _partial(out, f".{out.name}.export.partial", "OUT")
    lock, keep = os.open(partial, os.O_RDONLY), False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise OutputError(f"OUT {out}", got="another process that writes to it", do="Wait for its end") from error
    try:
        if not resume:
            shutil.rmtree(partial)
            partial.mkdir()
        yield partial
        if file:
            os.replace(partial / out.name, out)
        else:
            _exchange(partial, out)
    except KeyboardInterrupt:
        keep = resume
        raise
    finally:
        os.close(lock)
        if not keep:
            shutil.rmtree(partial, ignore_errors=True)


def refuse_place_of_adapter(out: Path, adapter: Path) -> None:
    """Refuse an output that is the adapter, or a folder that holds it: it may exist only once.

    Raises:
        OutputError: writing ``out`` would remove the adapter.

    Example:
        >>> refuse_place_of_adapter(Path("merged"), Path("runs/demo/adapter"))
    """
    place, found = out.resolve(), adapter.resolve()
    if place == found or place in found.parents:
        got = "the adapter itself" if place == found else "a folder that holds the adapter"
        raise OutputError(f"OUT {out}", got=got, do="Name another place: the adapter would be lost")


def _partial(out: Path, name: str, named: str) -> Path:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.parent / name
        partial.mkdir(exist_ok=True)
        if not os.access(out.parent, os.W_OK):
            raise PermissionError(13, "Permission denied", str(out.parent))
    except OSError as error:
        raise OutputError(
            f"{named} {out}", got=f"{error.strerror or error} in {out.parent}", do="Name a place that can be written to"
        ) from error
    return partial


def _exchange(partial: Path, out: Path) -> None:
    if not out.exists():
        partial.rename(out)
        return
    old = partial.with_suffix(".old")
    out.rename(old)
    try:
        partial.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
