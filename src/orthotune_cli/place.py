"""Outputs appear by rename: a folder is built beside its place and moved there when it is whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_folder(out: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``out`` that becomes ``out`` when the block ends well, and is removed when it does not.

    Args:
        out: the place; its parents are made.
        overwrite: replace what is there; otherwise only an empty folder may be there.

    Raises:
        OutputError: something is there already, or the place cannot be written to. Nothing was changed.

    Example:
        >>> with new_folder(Path("merged")) as folder:  # doctest: +SKIP
        ...     (folder / "config.json").write_text("{}")
    """
    from orthotune.errors import OutputError

    out = out.absolute()
    if out.exists() and not out.is_dir():
        raise OutputError(f"--out {out}", got="a file", needed="a folder, or a name that is free")
    try:
        if out.is_dir() and any(out.iterdir()) and not overwrite:
            raise OutputError(f"--out {out}", got="a folder that is not empty", do="Add --overwrite, or name another")
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.parent / f".{out.name}.{os.getpid()}.partial"
        partial.mkdir()
        if not os.access(out.parent, os.W_OK):
            raise PermissionError(13, "Permission denied", str(out.parent))
    except OSError as error:
        raise OutputError(
            f"--out {out}", got=f"{error.strerror or error} in {out.parent}", do="Name a place that can be written to"
        ) from error
    try:
        yield partial
        _exchange(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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
