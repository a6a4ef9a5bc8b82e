"""Tables of text: ``.csv`` and ``.tsv`` files, whatever character separates their columns."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orthotune.errors import DataError

#: What may separate columns, the usual one first.
DELIMITERS = (",", "\t", ";", "|")
NAMES = {",": "a comma", "\t": "a tab", ";": "a semicolon", "|": "a vertical bar"}


def read_delimited(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a table, each with its file and line; all values are strings, as :func:`csv.reader` reads them.

    The first line names the columns, and what separates their names separates all values.

    Args:
        path: a ``.csv`` or ``.tsv`` file in UTF-8.

    Raises:
        DataError: no names, a name twice, or a line with more or fewer values than there are names.
        OSError: a file that cannot be read.
    """
    # A field may hold a document, and the limit of the standard library is 128 KiB.
    before = csv.field_size_limit(sys.maxsize)
    try:
        with path.open(encoding="utf-8-sig", newline="") as opened:
            yield from _rows(path, opened)
    finally:
        csv.field_size_limit(before)


def delimiter_of(names: str, suffix: str = ".csv") -> str:
    """The character that separates the names of the columns.

    Args:
        names: the first line of the file.
        suffix: of the file; in ``.tsv`` it is the tab.

    Example:
        >>> delimiter_of("prompt;completion")
        ';'
    """
    if suffix == ".tsv":
        return "\t"
    outside = "".join(names.split('"')[::2])
    return next((one for one in DELIMITERS if one in outside), ",")


def _rows(path: Path, opened: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    first = opened.readline()
    delimiter = delimiter_of(first, path.suffix)
    names = next(csv.reader([first], delimiter=delimiter), [])
    if not any(name.strip() for name in names):
        raise DataError(f"data file {path}, line 1", got="no names", needed="the names of the columns")
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataError(f"data file {path}, line 1", got=f"the column {min(twice)!r} twice")
    reader = csv.reader(opened, delimiter=delimiter, strict=True)
    line = 2
    while True:
        try:
            values = next(reader, None)
        except csv.Error as fault:
            raise DataError(
                f"{path}, line {line}", got=str(fault), needed="values whose quotation marks are closed"
            ) from fault
        if values is None:
            return
        if values and len(values) != len(names):
            raise DataError(
                f"{path}, line {line}",
                got=f"{len(values)} values separated by {NAMES[delimiter]}",
                needed=f"{len(names)}, as line 1 has names",
                do=f'Put values that hold {NAMES[delimiter]} or a line break in quotation marks: "..."',
            )
        if values:
            yield f"{path}, line {line}", dict(zip(names, values, strict=True))
        line = reader.line_num + 2  # the reader has not seen the line of the names
