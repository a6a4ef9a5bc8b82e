"""Tables as CSV files: the only writer and the only reader."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orthotune.errors import DataError, OrthotuneError
from orthotune.files.atomic import Location, write_text


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
