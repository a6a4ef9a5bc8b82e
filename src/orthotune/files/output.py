"""Where a command writes: refused before any work if it is taken, and complete when it appears."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orthotune.errors import OutputError
from orthotune.files.atomic import put_in_place, remove, temporary
from orthotune.files.failed_write import writing
from orthotune.files.locks import FileLock, LockHeld


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder of the system's temporary files, which is gone when the block ends.

    Yields:
        The folder, empty.

    Example:
        >>> with temporary_folder() as folder:
        ...     folder.is_dir()
        True
        >>> folder.exists()
        False
    """
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@contextmanager
def new_folder(out: Path, *, overwrite: bool = False, named: str = "--out") -> Iterator[Path]:
    """A temporary folder beside ``out`` that becomes ``out`` when the block ends well, and is removed when it does not.

    Args:
        out: the folder; its parents are made.
        overwrite: replace what is there; otherwise only an empty folder may be there.
        named: how the command calls the folder, for messages.

    Yields:
        The temporary folder, empty.

    Raises:
        OutputError: something is there already, or the system refuses to write there. Nothing was changed.

    Example:
        >>> import tempfile
        >>> out = Path(tempfile.mkdtemp(), "merged")
        >>> with new_folder(out) as folder:
        ...     _ = (folder / "config.json").write_text("{}")
        >>> [path.name for path in out.iterdir()]
        ['config.json']
    """
    out = _checked(out, named, file=False, overwrite=overwrite)
    partial = temporary(out)
    _make(partial, out, named)
    try:
        yield partial
        with writing(out, f"{named} {out}"):
            put_in_place(partial, out)
    finally:
        remove(partial)


@contextmanager
def resumable(out: Path, *, file: bool = False, overwrite: bool = False, resume: bool = True) -> Iterator[Path]:
    """As :func:`new_folder`, for a file, too; and what was written stays beside ``out`` when it is interrupted.

    The same call finds it again. An error other than an interruption removes it.

    Args:
        out: the folder or file.
        file: ``out`` is a file, built under its own name in the temporary folder.
        overwrite: replace what is there.
        resume: whether anything is kept and found again.

    Yields:
        The temporary folder, with what an interrupted call left in it.

    Raises:
        OutputError: something is there already, the system refuses to write there, or another process is writing to
            it. Nothing was changed.

    Example:
        >>> with resumable(Path("merged.safetensors"), file=True) as folder:  # doctest: +SKIP
        ...     (folder / "merged.safetensors").write_bytes(b"")
    """
    out = _checked(out, "OUT", file=file, overwrite=overwrite)
    partial, keep = out.with_name(f".{out.name}.export.partial"), False
    _make(partial, out, "OUT")
    lock = FileLock(out.with_name(f".{out.name}.export.lock"))
    try:
        lock.acquire()
    except LockHeld as held:
        got = f"another process that writes to it: {held.by()}"
        raise OutputError(f"OUT {out}", got=got, do=f"Wait for its end{held.command()}") from held
    except OSError:
        pass  # a file system without locks: two such calls at the same time are the user's to avoid
    try:
        if not resume:
            remove(partial)
        _make(partial, out, "OUT")  # the one who held the lock a moment ago may have removed it
        yield partial
        with writing(out, f"OUT {out}"):
            put_in_place(partial / out.name if file else partial, out)
    except KeyboardInterrupt:
        keep = resume
        raise
    finally:
        if not keep:
            remove(partial)
        lock.release()


def _checked(out: Path, named: str, *, file: bool, overwrite: bool) -> Path:
    """The folder or file, absolute and with symbolic links followed, if it may be written to."""
    said, out = f"{named} {out.absolute()}", out.absolute()
    out = out.resolve() if out.is_symlink() else out
    there, wanted = ("a folder" if out.is_dir() else "a file"), "a file" if file else "a folder"
    if out.exists() and there != wanted:
        raise OutputError(said, got=there, needed=f"{wanted}, or a name that is free")
    taken = out.exists() and (file or any(out.iterdir()))
    if taken and not overwrite:
        got = "a file" if file else "a folder that is not empty"
        raise OutputError(said, got=got, do="Add --overwrite, or name another")
    return out


def _make(partial: Path, out: Path, named: str) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir(exist_ok=True)
        if not os.access(out.parent, os.W_OK):
            raise PermissionError(13, "Permission denied", str(out.parent))
    except OSError as error:
        raise OutputError(
            f"{named} {out}", got=f"{error.strerror or error} in {out.parent}", do="Name a place that can be written to"
        ) from error
