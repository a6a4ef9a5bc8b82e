"""Read rows of text data from files, with the place of each row for error messages."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orthotune.errors import DataError, nearest
from orthotune.files.json_file import read_json_lines, read_json_list
from orthotune.files.tables import read_delimited

Row = dict[str, Any]
SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".txt")
TABLES = (".csv", ".tsv")
NEEDED = 'an object such as {"text": "..."}'


def read_rows(path: Path) -> list[tuple[str, Row]]:
    """The rows of a file or of all files in a directory (sorted by name), each with its place.

    A ``.txt`` file is one row with a ``text``; ``.jsonl`` has one JSON object per line; ``.json`` a list of objects;
    ``.csv`` and ``.tsv`` a line with the names of the columns first; in a directory they are read where no other
    data is.

    Raises:
        DataError: a file that is missing, unreadable, of another kind, or with a broken line (file and line named).
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
        # Beside other data, such tables are lists of its files more often than data of their own.
        files = [file for file in files if file.suffix not in TABLES] or files
        if not files:
            raise DataError(f"data directory {path}", got="no data file", needed=f"files ending in {_or(SUFFIXES)}")
        return [row for file in files for row in _read_file(file)]
    if path.suffix not in SUFFIXES:
        raise DataError(f"data file {path}", got=f"suffix {path.suffix!r}", needed=_or(SUFFIXES))
    return list(_read_file(path))


def matching_files(pattern: str) -> list[Path] | None:
    """The files that a pattern such as ``texts/*.jsonl`` means, sorted; None for a text without ``*``, ``?`` or ``[``.

    Args:
        pattern: a path in which ``**`` stands for any folders.

    Raises:
        DataError: a pattern that no file has.

    Example:
        >>> matching_files("texts.jsonl") is None
        True
    """
    if not glob.has_magic(pattern):
        return None
    files = [Path(name) for name in sorted(glob.glob(pattern, recursive=True)) if Path(name).is_file()]
    if not files:
        raise DataError(f"data {pattern!r}", got="no file that this pattern means", do="Check the pattern")
    return files


def missing_path(source: str) -> DataError:
    """The error for a path that does not exist, with the names beside it that look most like it.

    Args:
        source: the path as it was given.

    Example:
        >>> print(missing_path("no/such.jsonl"))
        data 'no/such.jsonl'. Found: no such file or directory. Check the path.
    """
    close = near_paths(source)
    do = f"Did you mean {' or '.join(map(repr, close))}?" if close else "Check the path"
    return DataError(f"data {source!r}", got="no such file or directory", do=do)


def near_paths(source: str) -> list[str]:
    """Paths in the same folder whose names look like that of ``source``, best first; none where there is no folder.

    Args:
        source: a path, of which the last part does not exist.

    Example:
        >>> near_paths("no/such.jsonl")
        []
    """
    path = Path(source)
    try:
        names = sorted(one.name for one in path.parent.iterdir())
    except OSError:
        return []
    return [str(path.with_name(name)) for name in nearest(path.name, names)] if path.name else []


def _read_file(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        if path.suffix == ".parquet":
            yield from _parquet(path)
        elif path.suffix == ".txt":
            yield str(path), {"text": path.read_text(encoding="utf-8")}
        elif path.suffix == ".json":
            yield from _json_list(path)
        elif path.suffix in TABLES:
            yield from read_delimited(path)
        else:
            yield from _json_lines(path)
    except UnicodeDecodeError as fault:
        raise DataError(f"data file {path}", got=f"bytes that are not UTF-8 at position {fault.start}") from fault
    except OSError as fault:
        raise DataError(f"data file {path}", got=fault.strerror or str(fault), needed="a readable file") from fault


def _json_lines(path: Path) -> Iterator[tuple[str, Row]]:
    for number, row in read_json_lines(path, needed=NEEDED):
        yield f"{path}, line {number}", row


def _json_list(path: Path) -> Iterator[tuple[str, Row]]:
    hint = "If each line is an object of its own, name the file .jsonl"
    for number, row in enumerate(read_json_list(path, needed="a list of objects", do=hint)):
        place = f"{path}, row {number}"
        if not isinstance(row, dict):
            raise DataError(place, got=f"a JSON {type(row).__name__}", needed=NEEDED)
        yield place, row


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except pyarrow.ArrowInvalid as fault:
        raise DataError(f"data file {path}", got=str(fault).splitlines()[0], needed="a parquet file") from fault
    for number, row in enumerate(table.to_pylist()):
        yield f"{path}, row {number}", row


def _or(names: tuple[str, ...]) -> str:
    return ", ".join(names[:-1]) + f" or {names[-1]}"
