"""The only atomic writer: write a temporary sibling, flush it to the disk, rename it, and flush its folder.

A process that is killed at any moment leaves either the old or the new content under a name, never a part of it. Such a
process can also leave temporary files, called ``.NAME.NUMBER.part`` (incomplete) or ``.NAME.NUMBER.old`` (a folder that
was being replaced); :func:`sweep` removes or restores them.
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
    """Write a file or a folder under a temporary name; it is renamed to ``path`` when the block ends without an error.

    An existing file or folder of that name is replaced. Parent folders are created. If ``path`` is a symbolic link, the
    file that the link points to is replaced. A device or a pipe is written to directly.

    Args:
        path: the final name.

    Yields:
        The temporary name, which does not exist yet.

    Raises:
        OutputError: the block or the system could not write (disk full, no permission, a folder in place of a file).
            The previous content is unchanged. All other errors of the block are raised as they are.

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
    """Write a file atomically.

    Args:
        path: the file; an existing file is replaced.
        content: the bytes of the file.

    Raises:
        OutputError: as :func:`atomic_write`.
    """
    with atomic_write(path) as partial:
        partial.write_bytes(content)


def write_text(path: Location, text: str) -> None:
    """Write a UTF-8 text file atomically; the line ends of ``text`` are kept on every system.

    Args:
        path: the file; an existing file is replaced.
        text: the content of the file.

    Raises:
        OutputError: as :func:`atomic_write`.
    """
    write_bytes(path, text.encode("utf-8"))


def temporary(path: Path, kind: str = "part") -> Path:
    """An unused hidden name in the folder of ``path``.

    Args:
        path: the final name.
        kind: end of the hidden name: ``part`` for an incomplete file, ``old`` for a folder that is being replaced.

    Example:
        >>> temporary(Path("runs/a.json")).name.startswith(".a.json.")
        True
    """
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.{kind}")


def put_in_place(partial: Path, path: Path) -> None:
    """Flush a complete file or folder to the disk and rename it to ``path``, which is replaced if it exists.

    Args:
        partial: the complete file or folder, on the same file system as ``path``.
        path: the final name.

    Raises:
        OutputError: ``path`` is a folder and ``partial`` a file, or the other way round.
        OSError: the system refused the write or the rename; the previous content is unchanged.
    """
    if path.exists() and path.is_dir() != partial.is_dir():
        existing, new = ("a folder", "a file") if path.is_dir() else ("a file", "a folder")
        raise OutputError(f"writing {path}", got=f"{existing} of that name", needed=f"a name for {new}")
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
    """Flush a file, or a folder with everything in it, to the disk.

    Raises:
        OSError: the system could not write.
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
    """Remove a file, or a folder with everything in it, as far as the system permits. A missing path is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path, names: str | None = None) -> None:
    """Remove the temporary files that killed processes left in a folder, and restore folders that they were replacing.

    Call it only where no other process is writing.

    Args:
        folder: the folder to clean; it need not exist.
        names: a regular expression for the final names whose temporary files are handled; all of them if None.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / ".a.json.0123456789ab.part").touch()
        >>> sweep(folder)
        >>> list(folder.iterdir())
        []
    """
    number = f"(?:{_NUMBER})?" if names else _NUMBER  # earlier versions wrote known names without a number
    pattern = re.compile(rf"\.(?P<name>{names or '.+?'})(?:{number}(?P<old>\.old(?:\.part)?)|(?:{_NUMBER})?\.part)")
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        if found := pattern.fullmatch(path.name):
            final = folder / found["name"]
            if found["old"] and not final.exists():
                os.replace(path, final)
            else:
                remove(path)


def _permit(partial: Path, path: Path) -> None:
    """A replaced file keeps its permissions. A new file gets the default permissions, also from libraries that write
    files which only the owner can read.
    """
    if path.is_file():
        partial.chmod(stat.S_IMODE(path.stat().st_mode))
        return
    files = [inner for inner in partial.rglob("*") if inner.is_file()] if partial.is_dir() else [partial]
    private = [file for file in files if not file.is_symlink() and stat.S_IMODE(file.stat().st_mode) == 0o600]
    if private:
        # Reading the umask means setting it for a moment, which would affect other threads; a new file shows it as
        # well.
        probe = temporary(path)
        try:
            os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            ordinary = stat.S_IMODE(probe.stat().st_mode)
        finally:
            remove(probe)
        for file in private:
            file.chmod(ordinary)
