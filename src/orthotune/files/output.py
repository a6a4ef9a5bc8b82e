"""The output of a command: an existing output is refused before any work, and a new one appears when it is complete."""

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
    """A temporary folder that is renamed to ``out`` when the block ends without an error, and removed otherwise.

    Args:
        out: the folder; its parents are created.
        overwrite: replace an existing folder; otherwise only an empty folder may exist.
        named: the option that names the folder, for messages.

    Yields:
        The temporary folder, empty.

    Raises:
        OutputError: the output exists already, or the system refuses to write there. Nothing was changed.

    Example:
        >>> import tempfile
        >>> out = Path(tempfile.mkdtemp(), "merged")
        >>> with new_folder(out) as folder:
        ...     _ = (folder / "config.json").write_text("{}")
        >>> [path.name for path in out.iterdir()]
        ['config.json']
    """
    out = check_output(out, named, file=False, overwrite=overwrite)
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
    """As :func:`new_folder`, also for a file, and an interruption keeps the temporary folder for the next call.

    The next call with the same ``out`` continues in that folder. An error other than an interruption removes it.

    Args:
        out: the folder or file.
        file: ``out`` is a file, written under its final name in the temporary folder.
        overwrite: replace an existing output.
        resume: whether the temporary folder of an interrupted call is kept and used again.

    Yields:
        The temporary folder, with the files that an interrupted call left in it.

    Raises:
        OutputError: the output exists already, the system refuses to write there, or another process is writing to
            it. Nothing was changed.

    Example:
        >>> with resumable(Path("merged.safetensors"), file=True) as folder:  # doctest: +SKIP
        ...     (folder / "merged.safetensors").write_bytes(b"")
    """
    out = check_output(out, "OUT", file=file, overwrite=overwrite)
    partial, keep = out.with_name(f".{out.name}.export.partial"), False
    _make(partial, out, "OUT")
    lock = FileLock(out.with_name(f".{out.name}.export.lock"))
    try:
        lock.acquire()
    except LockHeld as held:
        got = f"another process that writes to it: {held.by()}"
        raise OutputError(f"OUT {out}", got=got, do=f"Wait for its end{held.command()}") from held
    except OSError:
        pass  # a file system without locks: nothing prevents two calls at the same time
    try:
        if not resume:
            remove(partial)
        _make(partial, out, "OUT")  # again: the previous holder of the lock may have removed it
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


def check_output(out: Path, named: str, *, file: bool, overwrite: bool) -> Path:
    """The absolute path of an output, with symbolic links resolved, if it may be written.

    Args:
        out: the folder or file.
        named: the option that names it, for messages.
        file: whether a file is to be written.
        overwrite: replace what is there; otherwise only an empty folder may exist.

    Raises:
        OutputError: the output exists already, or is of the other kind.

    Example:
        >>> check_output(Path("no", "such"), "OUT", file=False, overwrite=False).is_absolute()
        True
    """
    given, out = f"{named} {out.absolute()}", out.absolute()
    out = out.resolve() if out.is_symlink() else out
    existing, wanted = ("a folder" if out.is_dir() else "a file"), "a file" if file else "a folder"
    if out.exists() and existing != wanted:
        raise OutputError(given, got=existing, needed=f"{wanted}, or an unused name")
    taken = out.exists() and (file or any(out.iterdir()))
    if taken and not overwrite:
        got = "a file" if file else "a folder that is not empty"
        raise OutputError(given, got=got, do="Add --overwrite, or name another")
    return out


def _make(partial: Path, out: Path, named: str) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir(exist_ok=True)
        if not os.access(out.parent, os.W_OK):
            raise PermissionError(13, "Permission denied", str(out.parent))
    except OSError as error:
        got = f"{error.strerror or error} in {out.parent}"
        raise OutputError(f"{named} {out}", got=got, do="Name a folder that can be written to") from error
