"""Read rows of text data from files, with the place of each row for error messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orthotune.errors import DataError

Row = dict[str, Any]
SUFFIXES = (".jsonl", ".json", ".parquet", ".txt")


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
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                place = f"{path}, line {number}"
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as fault:
                    raise DataError(f"{place}: not JSON", got=f"{fault.msg} at column {fault.colno}") from fault
                yield place, _object(row, place)


def _json_list(path: Path) -> Iterator[tuple[str, Row]]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as fault:
        do = "If each line is an object of its own, name the file .jsonl"
        raise DataError(f"{path}, line {fault.lineno}: not JSON", got=fault.msg, do=do) from fault
    if not isinstance(rows, list):
        raise DataError(f"data file {path}", got=type(rows).__name__, needed="a list of objects")
    for number, row in enumerate(rows):
        place = f"{path}, row {number}"
        yield place, _object(row, place)


def _parquet(path: Path) -> Iterator[tuple[str, Row]]:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except pyarrow.ArrowInvalid as fault:
        raise DataError(f"data file {path}", got=str(fault).splitlines()[0], needed="a parquet file") from fault
    for number, row in enumerate(table.to_pylist()):
        yield f"{path}, row {number}", row


def _object(row: Any, place: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(place, got=f"a JSON {type(row).__name__}", needed='an object such as {"text": "..."}')
    return row


def _or(names: tuple[str, ...]) -> str:
    return ", ".join(names[:-1]) + f" or {names[-1]}"
