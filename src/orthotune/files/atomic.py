"""The only atomic writer: a temporary sibling, brought to the disk, renamed, and its folder brought to the disk.

A process that is killed at any moment leaves the old content or the new one under a name, never half of one. What such
a process leaves besides is called ``.NAME.NUMBER.part`` (not complete) or ``.NAME.NUMBER.old`` (a folder that was just
being replaced), and :func:`sweep` puts it in order.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from orthotune.errors import OutputError
from orthotune.files.failed_write import writing
from orthotune.files.platforms import flush_file, flush_folder

#: A path as text or as an object.
Location = str | os.PathLike[str]
_NUMBER = r"\.[0-9a-f]{12,32}"


@contextmanager
def atomic_write(path: Location) -> Iterator[Path]:
    """A temporary sibling to write a file or a folder to; it takes the name ``path`` when the block ends well.

    A file or a folder of that name is replaced. Parents are made. A symbolic link keeps pointing where it does: what
    it points to is replaced. A device or a pipe is written to directly.

    Args:
        path: the final name.

    Yields:
        The temporary name; nothing has it yet.

    Raises:
        OutputError: the block or the system could not write (disk full, no permission, a folder where a file is
            written); what was there before is there still. Other errors of the block come through as they are.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "a.txt")
        >>> with atomic_write(path) as partial:
        ...     _ = partial.write_text("complete")
        ...     path.exists()
        False
        >>> path.read_text()
        'complete'
    """
    final = Path(path)
    with writing(final):
        if final.is_symlink():
            final = final.resolve()
        if final.exists() and not (final.is_file() or final.is_dir()):
            yield final
            return
        final.parent.mkdir(parents=True, exist_ok=True)
        partial = temporary(final)
        try:
            yield partial
            put_in_place(partial, final)
        finally:
            remove(partial)


def write_bytes(path: Location, content: bytes) -> None:
    """Write a file, complete or not at all.

    Args:
        path: the file; what is there is replaced.
        content: its bytes.

    Raises:
        OutputError: as :func:`atomic_write`.
    """
    with atomic_write(path) as partial:
        partial.write_bytes(content)


def write_text(path: Location, text: str) -> None:
    """Write a UTF-8 text file, complete or not at all, with line ends as they are in ``text`` on every system.

    Args:
        path: the file; what is there is replaced.
        text: its text.

    Raises:
        OutputError: as :func:`atomic_write`.
    """
    write_bytes(path, text.encode("utf-8"))


def temporary(path: Path, kind: str = "part") -> Path:
    """A free hidden name beside ``path``, of the kind ``part`` or ``old``.

    Example:
        >>> temporary(Path("runs/a.json")).name.startswith(".a.json.")
        True
    """
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.{kind}")


def put_in_place(partial: Path, path: Path) -> None:
    """Bring a complete file or folder to the disk and rename it to ``path``, in place of what is there.

    Args:
        partial: in the same folder as ``path``, or at least on the same file system.
        path: the final name.

    Raises:
        OutputError: a folder is there where a file is put, or a file where a folder is.
        OSError: the system refused; what was there before is there still.
    """
    if path.exists() and path.is_dir() != partial.is_dir():
        there, comes = ("a folder", "a file") if path.is_dir() else ("a file", "a folder")
        raise OutputError(f"writing {path}", got=f"{there} of that name", needed=f"a name for {comes}")
    _permit(partial, path)
    flush(partial)
    if path.is_dir():
        old = temporary(path, "old")
        os.replace(path, old)
        try:
            os.replace(partial, path)
        except BaseException:
            os.replace(old, path)
            raise
        flush_folder(path.parent)
        remove(old)
    else:
        os.replace(partial, path)
        flush_folder(path.parent)


def flush(path: Path) -> None:
    """Bring a file, or a folder with everything in it, to the disk.

    Raises:
        OSError: the system refused.
    """
    if not path.is_dir():
        flush_file(path)
        return
    for inner in path.rglob("*"):
        if inner.is_dir() and not inner.is_symlink():
            flush_folder(inner)
        elif inner.is_file() and not inner.is_symlink():
            flush_file(inner)
    flush_folder(path)


def remove(path: Path) -> None:
    """Remove a file, or a folder with everything in it, as far as the system permits; nothing there is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path, names: str | None = None) -> None:
    """Remove what killed processes left half-written in a folder, and give back a folder that they were replacing.

    Call it only where no other process is writing.

    Args:
        folder: where; nothing happens if it is not there.
        names: a regular expression for the final names that are put in order; all of them if None.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / ".a.json.0123456789ab.part").touch()
        >>> sweep(folder)
        >>> list(folder.iterdir())
        []
    """
    number = f"(?:{_NUMBER})?" if names else _NUMBER  # of names that are known, those without a number are known too
    pattern = re.compile(rf"\.(?P<name>{names or '.+?'})(?:{number}(?P<old>\.old(?:\.part)?)|(?:{_NUMBER})?\.part)")
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        if found := pattern.fullmatch(path.name):
            final = folder / found["name"]
            if found["old"] and not final.exists():
                os.replace(path, final)
            else:
                remove(path)


def _permit(partial: Path, path: Path) -> None:
    """A replaced file keeps its permissions; a new one has those of any new file, also from libraries that write
    files which only their owner can read.
    """
    if path.is_file():
        partial.chmod(stat.S_IMODE(path.stat().st_mode))
        return
    files = [inner for inner in partial.rglob("*") if inner.is_file()] if partial.is_dir() else [partial]
    private = [file for file in files if not file.is_symlink() and stat.S_IMODE(file.stat().st_mode) == 0o600]
    if private:
        # The umask can be read only by setting it, which other threads would notice: a new file shows it, too.
        probe = temporary(path)
        try:
            os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            ordinary = stat.S_IMODE(probe.stat().st_mode)
        finally:
            remove(probe)
        for file in private:
            file.chmod(ordinary)
