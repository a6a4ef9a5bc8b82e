"""Tables as CSV files: the only writer, and the only readers: of the project's own tables, and of any others."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from orthotune.errors import DataError, OrthotuneError
from orthotune.files.atomic import Location, write_text

#: What may separate columns, the usual one first.
DELIMITERS = (",", "\t", ";", "|")
NAMES = {",": "a comma", "\t": "a tab", ";": "a semicolon", "|": "a vertical bar"}


def write_table(path: Location, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write a CSV file with a header, atomically; None becomes an empty cell.

    Args:
        path: the file; an existing file is replaced.
        rows: one mapping from column to value per line.
        columns: the header; the keys of the first row if None.

    Raises:
        OutputError: the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "a.csv")
        >>> write_table(path, [{"run": "oft", "loss": 1.5}])
        >>> path.read_text().split()
        ['run,loss', 'oft,1.5']
    """
    rows = list(rows)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]) if columns is None else list(columns))
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def read_table(
    path: Location, *, named: str = "", error: type[OrthotuneError] = DataError
) -> list[tuple[int, dict[str, str]]]:
    """The rows of a CSV file with a header, each with its line number.

    Args:
        path: the file.
        named: kind of the file, for messages; written before the path.
        error: class of the error that is raised.

    Raises:
        OrthotuneError: of the class ``error``: the file does not exist, or is no text.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [(number, dict(row)) for number, row in enumerate(csv.DictReader(file), start=2)]
    except (OSError, UnicodeDecodeError, csv.Error) as fault:
        got = "no such file" if isinstance(fault, FileNotFoundError) else str(fault)
        raise error(f"{named} {path}".lstrip(), got=got, needed="a table as CSV, in UTF-8") from fault


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
