"""Texts to learn from or to measure on: running text, prompts with completions, or dialogues."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orthotune.errors import DataError
from orthotune.runs.data_files import Row, read_rows
from orthotune.runs.hub_data import load_split

# Asked in this order: a dialogue export often carries its rendered text beside the messages.
COLUMNS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt-completion": ("prompt", "completion"),
    "text": ("text",),
}
LARGEST_HELD_OUT = 256
HELD_OUT_SHARE = 0.05
SMALLEST_TO_HOLD_OUT = 20


@dataclass(frozen=True)
class Examples:
    """Rows of one format, holding only that format's columns.

    ``blank`` rows of the source have no text and are skipped; its columns ``unused`` are not read.
    """

    rows: list[Row]
    format: str
    source: str
    blank: int = 0
    unused: tuple[str, ...] = ()


def load_examples(source: str, data_format: str = "auto") -> Examples:
    """The examples in a file, in a directory, or in the hub's data set ``NAME`` or ``NAME:SPLIT``.

    Raises:
        DataError: nothing there, nothing in it, a broken line, or none of the known columns.

    Example:
        >>> load_examples("reviews.jsonl").format  # doctest: +SKIP
        'prompt-completion'
    """
    rows = placed_rows(source)
    return examples_of(rows, source, data_format)


def placed_rows(source: str) -> list[tuple[str, Row]]:
    """The rows of a file, of a directory, or of the hub's data set, each with its place for messages.

    Args:
        source: as :func:`load_examples` takes it.

    Raises:
        DataError: nothing there, or a broken line.

    Example:
        >>> placed_rows("pairs.jsonl")  # doctest: +SKIP
        [('pairs.jsonl, line 1', {'prompt': '1 + 1 =', 'chosen': '2', 'rejected': '3'})]
    """
    path = Path(source)
    if path.exists():
        return read_rows(path)
    if path.suffix in (".jsonl", ".json", ".parquet", ".txt") or source.startswith((".", "/", "~")):
        raise DataError(f"data {source!r}", got="no such file or directory", do="Check the path")
    return [(f"{source}, row {number}", row) for number, row in enumerate(load_split(source))]


def examples_of(rows: Iterable[tuple[str, Row]], source: str, data_format: str = "auto") -> Examples:
    """``rows``, each with its place, as examples of one format; rows without any text are skipped."""
    placed = list(rows)
    if not placed:
        raise DataError(f"data {source!r}", got="no rows", needed="at least one example")
    name = _format_of(placed[0][1], source) if data_format == "auto" else data_format
    kept = [row for place, full in placed if _has_text(row := _only(full, name, place), name, place)]
    if not kept:
        raise DataError(f"data {source!r}", got=f"{len(placed)} rows, all blank", needed="at least one example")
    unused = {column for _, full in placed for column, value in full.items() if value is not None} - kept[0].keys()
    return Examples(kept, name, source, len(placed) - len(kept), tuple(sorted(unused)))


def hold_out(examples: Examples) -> tuple[Examples, Examples | None]:
    """Split off a twentieth (at most 256 rows) to measure on; nothing when there are fewer than 20 rows.

    The choice depends on the number of rows only, so that runs with other seeds are measured on the same rows.
    """
    count = len(examples.rows)
    if count < SMALLEST_TO_HOLD_OUT:
        return examples, None
    wanted = min(LARGEST_HELD_OUT, max(1, int(count * HELD_OUT_SHARE)))
    chosen = set(random.Random(count).sample(range(count), wanted))
    rest = [row for index, row in enumerate(examples.rows) if index not in chosen]
    held_out = [examples.rows[index] for index in sorted(chosen)]
    return replace(examples, rows=rest), Examples(held_out, examples.format, examples.source)


def _format_of(row: Row, source: str) -> str:
    for name, columns in COLUMNS.items():
        if all(column in row for column in columns):
            return name
    raise DataError(
        f"data {source!r}",
        got=f"columns {', '.join(sorted(row)) or '(none)'}",
        needed=" or ".join(" + ".join(columns) for columns in COLUMNS.values()),
        do="Rename the columns",
    )


def _only(row: Row, name: str, place: str) -> Row:
    missing = [column for column in COLUMNS[name] if row.get(column) is None]
    if missing:
        got = f"columns {', '.join(sorted(key for key in row if row[key] is not None)) or '(none)'}"
        raise DataError(place, got=got, needed=f"{' and '.join(missing)} (the data is read as {name})")
    found = {column: row[column] for column in COLUMNS[name]}
    if any(map(is_dialogue, found.values())) and row.get("tools"):
        # As JSON: rows have tools of other fields, which a table would give each other.
        found["tools"] = row["tools"] if isinstance(row["tools"], str) else json.dumps(row["tools"])
    return found


def _has_text(row: Row, name: str, place: str) -> bool:
    for column in COLUMNS[name]:
        value = row[column]
        # A conversational prompt is a list of messages, as a dialogue is.
        fits = is_dialogue(value) if name == "messages" else isinstance(value, str) or is_dialogue(value)
        if not fits or (name == "text" and not isinstance(value, str)):
            kind = "a list of {role, content}" if name == "messages" else "a string"
            raise DataError(
                f"{place}: column {column!r}", got=f"{type(value).__name__} {str(value)[:40]!r}", needed=kind
            )
    return all(value.strip() if isinstance(value, str) else value for value in row.values())


def is_dialogue(value: Any) -> bool:
    """Whether a value is a list of messages, each with a role and with content or calls of tools.

    Example:
        >>> is_dialogue([{"role": "user", "content": "Hi"}]), is_dialogue("Hi")
        (True, False)
    """
    return isinstance(value, list) and all(
        isinstance(message, dict)
        and isinstance(message.get("role"), str)
        and ("content" in message or bool(message.get("tool_calls")))
        for message in value
    )


def table_of(examples: Examples) -> Any:
    """The examples as a ``datasets.Dataset`` in which every row keeps its own fields of messages, and no others."""
    from datasets import Dataset, Features, Json, Value  # an optional library, which measuring does without

    columns = list(dict.fromkeys(column for row in examples.rows for column in row))
    rows = [{column: row.get(column) for column in columns} for row in examples.rows]
    dialogues = [column for column in columns if any(is_dialogue(row[column]) for row in rows)]
    if not dialogues:
        return Dataset.from_list(rows)
    return Dataset.from_list(
        rows, features=Features({name: Json() if name in dialogues else Value("string") for name in columns})
    )
