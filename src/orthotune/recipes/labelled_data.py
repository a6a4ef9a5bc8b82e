"""Rows with labels: read from tables, checked column by column, and split into rows to learn and to measure on."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from orthotune.errors import DataError
from orthotune.recipes.head_settings import HeadSettings
from orthotune.runs.data_files import Row
from orthotune.runs.hub_data import load_split
from orthotune.text.data import placed_rows

T = TypeVar("T")
#: A row, and where it stands, for messages.
Placed = tuple[str, Row]
LARGEST_HELD_OUT = 1000


@dataclass(frozen=True)
class Split(Generic[T]):
    """Examples to learn from, and held-out ones by domain: ``new``, the target, and ``old``, the source domain."""

    train: list[T]
    domains: dict[str, list[T]]


def load_rows(source: str) -> list[Placed]:
    """The rows of a file (CSV, JSON, JSON lines, parquet), of a directory, or of a hub data set ``NAME:SPLIT``.

    Labels of the hub that are numbers of named classes become their names.

    Args:
        source: a path, or a name on the hub.

    Returns:
        each row with its place.

    Raises:
        DataError: nothing there, nothing in it, or a broken line.

    Example:
        >>> load_rows("reviews.csv")[0]  # doctest: +SKIP
        ('reviews.csv, line 2', {'text': 'Fine.', 'label': 'good'})
    """
    rows = placed_rows(source, _hub_rows)
    if not rows:
        raise DataError(f"data {source!r}", got="no rows", needed="at least one example")
    return rows


def require_columns(rows: Sequence[Placed], columns: Sequence[str], source: str) -> None:
    """Refuse rows without a column.

    Args:
        rows: to look at.
        columns: that every row needs.
        source: named in messages.

    Raises:
        DataError: names the row, what it has and what it lacks.
    """
    for place, row in rows:
        if missing := [column for column in columns if row.get(column) is None]:
            has = [str(key) for key in row if key is not None and row[key] is not None]
            raise DataError(
                place, got=f"columns {', '.join(has) or '(none)'}", needed=" and ".join(missing),
                do=f"Rename the columns of {source}, or complete the row",
            )  # fmt: skip


def text_in(place: str, row: Row, column: str) -> str:
    """The text in a column.

    Args:
        place: of the row.
        row: with the column.
        column: its name.

    Raises:
        DataError: it is no text, or empty.

    Example:
        >>> text_in("a.csv, line 2", {"text": " Fine. "}, "text")
        'Fine.'
    """
    value = row[column]
    if not isinstance(value, str):
        raise DataError(f"{place}: column {column!r}", got=f"{type(value).__name__} {str(value)[:40]!r}", needed="text")
    if not value.strip():
        raise DataError(f"{place}: column {column!r}", got="an empty text", do="Complete the row, or remove it")
    return value.strip()


def rows_counted(found: Split[T]) -> str:
    """How many examples a split has, for the start of a run.

    Example:
        >>> rows_counted(Split(["a", "b"], {"new": ["c"]}))
        'train 2, new 1'
    """
    counted = {"train": len(found.train), **{name: len(rows) for name, rows in found.domains.items()}}
    return ", ".join(f"{name} {count:,}" for name, count in counted.items())


def split(settings: HeadSettings, read: Callable[[str], list[T]]) -> Split[T]:
    """What to learn from and what to measure on, as the settings say.

    The choice of held-out rows depends on the number of rows only, so that runs with other seeds are comparable.

    Args:
        settings: with ``data``, ``eval_data``, ``old_data`` and ``held_out``.
        read: makes the examples of a source.

    Raises:
        DataError: as ``read``; or no row would be left to learn from.
    """
    rows, domains = read(settings.data), dict[str, list[T]]()
    if settings.eval_data is not None:
        domains["new"] = read(settings.eval_data)
    elif (count := min(LARGEST_HELD_OUT, round(len(rows) * settings.held_out))) > 0:
        chosen = set(random.Random(len(rows)).sample(range(len(rows)), count))
        domains["new"] = [row for index, row in enumerate(rows) if index in chosen]
        rows = [row for index, row in enumerate(rows) if index not in chosen]
    if settings.old_data is not None:
        domains["old"] = read(settings.old_data)
    return Split(rows, domains)


def forgetting_notes(settings: HeadSettings) -> list[str]:
    """What a run's record notes about its source domain: nothing where it was named."""
    if settings.old_data is not None:
        return []
    return ["source domain: none, so forgetting is not measured. old_data=FILE names older data of the same task."]


def listed(names: Iterable[Any], most: int = 8) -> str:
    """The first names, and how many more there are.

    Example:
        >>> listed(["a", "b", "c"], most=2)
        'a, b and 1 more'
    """
    known = [str(name) for name in names]
    return ", ".join(known[:most]) + (f" and {len(known) - most} more" if len(known) > most else "")


def _hub_rows(source: str) -> list[Row]:
    found = load_split(source)
    for key, kind in dict(found.features or {}).items():
        if type(kind).__name__ in ("Audio", "Image"):  # as bytes: decoding is done where the recipe checks each one
            found = found.cast_column(key, type(kind)(decode=False))
    named = {key: kind.names for key, kind in (found.features or {}).items() if hasattr(kind, "int2str")}
    return [
        {key: named[key][value] if key in named and value is not None and value >= 0 else value
         for key, value in row.items()}
        for row in found
    ]  # fmt: skip
