"""Read rows of text data from files, with the place of each row for error messages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orthotune.errors import DataError
from orthotune.files.json_file import read_json_lines, read_json_list

Row = dict[str, Any]
SUFFIXES = (".jsonl", ".json", ".parquet", ".txt")
NEEDED = 'an object such as {"text": "..."}'


def read_rows(path: Path) -> list[tuple[str, Row]]:
    """The rows of a file or of all files in a directory (sorted by name), each with its place.

    A ``.txt`` file is one row with a ``text``; ``.jsonl`` has one JSON object per line; ``.json`` a list of objects.

    Raises:
        DataError: a file that is missing, unreadable, of another kind, or with a broken line (file and line named).
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
        if not files:
            raise DataError(f"data directory {path}", got="no data file", needed=f"files ending in {_or(SUFFIXES)}")
        return [row for file in files for row in _read_file(file)]
    if path.suffix not in SUFFIXES:
        raise DataError(f"data file {path}", got=f"suffix {path.suffix!r}", needed=_or(SUFFIXES))
    return list(_read_file(path))


def _read_file(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        if path.suffix == ".parquet":
            yield from _parquet(path)
        elif path.suffix == ".txt":
            yield str(path), {"text": path.read_text(encoding="utf-8")}
        elif path.suffix == ".json":
            yield from _json_list(path)
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
