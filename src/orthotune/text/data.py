"""Texts to learn from or to measure on: running text, prompts with completions, or dialogues."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orthotune.errors import DataError
from orthotune.runs.data_files import SUFFIXES, Row, matching_files, missing_path, near_paths, read_rows
from orthotune.runs.hub_data import load_split
from orthotune.text.row_forms import FORMS, form_of, forms_of, is_dialogue, refuse_other_form, renamed

__all__ = [
    "Examples",
    "Reading",
    "examples_of",
    "hold_out",
    "is_dialogue",
    "load_examples",
    "placed_rows",
]

LARGEST_HELD_OUT = 256
HELD_OUT_SHARE = 0.05
SMALLEST_TO_HOLD_OUT = 20


@dataclass(frozen=True)
class Reading:
    """How the rows of a source are read.

    Args:
        form: a name of :data:`orthotune.text.row_forms.FORMS`; ``auto`` recognizes the form by the columns of the first
            row.
        columns: from the name of a column in the form to its name in the source, as ``{"prompt": "question"}``.
        roles: from a name of a speaker in the source to the role that a chat template knows.
        system_prompt: put before dialogues that have no system message.
    """

    form: str = "auto"
    columns: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)
    system_prompt: str | None = None


@dataclass(frozen=True)
class Examples:
    """Rows of one format, holding only that format's columns.

    ``format`` is ``text``, ``prompt-completion`` or ``messages``, or ``mixed`` for rows of several sets. ``blank`` rows
    of the source have no text and are skipped; its columns ``unused`` are not read. ``places`` says where each row is
    in its source, and ``notes`` are sentences about the source for the start of a run.
    """

    rows: list[Row]
    format: str
    source: str
    blank: int = 0
    unused: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def place(self, index: int) -> str:
        """Where a row is in its source, as ``texts.jsonl, line 3``.

        Example:
            >>> Examples([{"text": "a"}], "text", "texts").place(0)
            'texts, example 1'
        """
        return self.places[index] if self.places else f"{self.source}, example {index + 1}"

    def chosen(self, indices: Sequence[int], **changes: Any) -> Examples:
        """Some of the rows with their places, in the order of ``indices``.

        Args:
            indices: of the rows.
            **changes: other fields of the result.

        Example:
            >>> Examples([{"text": "a"}, {"text": "b"}], "text", "texts").chosen([1]).rows
            [{'text': 'b'}]
        """
        rows, places = [self.rows[index] for index in indices], tuple(self.place(index) for index in indices)
        return replace(self, rows=rows, places=places, **changes)


def load_examples(source: str, data_format: str = "auto", reading: Reading | None = None) -> Examples:
    """The examples in a file, in a directory, in files ``texts/*.jsonl``, or in a data set of the hub.

    Args:
        source: a path, a pattern, or the hub's ``NAME``, ``NAME:SPLIT`` or ``NAME:CONFIG:SPLIT``.
        data_format: the form of the rows, where there is no ``reading``.
        reading: how the rows are read.

    Raises:
        DataError: nothing there, nothing in it, a broken line, or none of the known columns.

    Example:
        >>> load_examples("reviews.jsonl").format  # doctest: +SKIP
        'prompt-completion'
    """
    return examples_of(placed_rows(source), source, data_format, reading)


def placed_rows(source: str, hub: Callable[[str], Iterable[Row]] = load_split) -> list[tuple[str, Row]]:
    """The rows of a file, of a directory, of a pattern, or of the hub's data set, each with its place for messages.

    Args:
        source: as :func:`load_examples` takes it.
        hub: reads the rows of a data set of the hub.

    Raises:
        DataError: nothing there, or a broken line.

    Example:
        >>> placed_rows("pairs.jsonl")  # doctest: +SKIP
        [('pairs.jsonl, line 1', {'prompt': '1 + 1 =', 'chosen': '2', 'rejected': '3'})]
    """
    path = Path(source)
    if path.exists():
        return read_rows(path)
    if (files := matching_files(source)) is not None:
        return [row for file in files for row in read_rows(file)]
    folder = Path(source.partition(":")[0])  # FOLDER:CONFIG:SPLIT is read by ``datasets``
    if path.suffix in SUFFIXES or (source.startswith((".", "/", "~")) and not folder.is_dir()):
        raise missing_path(source)
    return [(f"{source}, row {number}", row) for number, row in enumerate(_from_hub(source, hub))]


def _from_hub(source: str, hub: Callable[[str], Iterable[Row]]) -> Iterable[Row]:
    try:
        return hub(source)
    except DataError as fault:
        if close := near_paths(source):
            do = f"Did you mean the file {close[0]!r}?"
            raise DataError(fault.given, got=fault.got, needed=fault.needed, do=do) from fault
        raise


def examples_of(
    rows: Iterable[tuple[str, Row]], source: str, data_format: str = "auto", reading: Reading | None = None
) -> Examples:
    """``rows``, each with its place, as examples of one format; rows without any text are skipped.

    Args:
        rows: with the columns of the source.
        source: for messages.
        data_format: the form of the rows, where there is no ``reading``.
        reading: how the rows are read.

    Raises:
        DataError: no rows, rows of no form or of several ones, or a value of another kind; names the place.

    Example:
        >>> examples_of([("line 1", {"instruction": "Add 1 and 1.", "output": "2"})], "sums").notes
        ('form: alpaca, 1 row of sums.',)
    """
    reading = reading or Reading(data_format)
    placed = [(place, renamed(row, reading.columns, place)) for place, row in rows]
    if not placed:
        raise DataError(f"data {source!r}", got="no rows", needed="at least one example")
    form = form_of(placed[0][1], source) if reading.form == "auto" else FORMS[reading.form]
    kept, places, empty = [], [], []
    for place, full in placed:
        refuse_other_form(full, form, place, forced=reading.form != "auto")
        row = form.read(full, place, reading.roles)
        if all(value.strip() if isinstance(value, str) else value for value in row.values()):
            kept.append(_with_system_prompt(row, reading.system_prompt))
            places.append(place)
        else:
            empty.append(place)
    if not kept:
        raise DataError(f"data {source!r}", got=f"{len(placed)} rows, all blank", needed="at least one example")
    if reading.system_prompt and not any(map(is_dialogue, kept[0].values())):
        raise DataError(
            f"system_prompt for data {source!r}",
            got=f"rows of the form {form.name}, which hold no dialogues",
            do="Leave system_prompt out, or name data with messages",
        )
    unused = {str(column) for _, full in placed for column, value in full.items() if value is not None}
    unused -= {*form.columns, *form.optional, *kept[0]}
    note = f"form: {form.name}, {len(kept):,} row{'s' * (len(kept) != 1)} of {source}."
    others = [other.name for other in forms_of(placed[0][1]) if other is not form]
    if reading.form == "auto" and others:
        note += f" They also have the columns of {' and '.join(others)}: data_format={others[0]} reads those."
    if empty:
        note += f" Blank: {', '.join(empty[:3])}{', and others' * (len(empty) > 3)}."
    return Examples(kept, form.format, source, len(empty), tuple(sorted(unused)), tuple(places), (note,))


def _with_system_prompt(row: Row, system_prompt: str | None) -> Row:
    """A row whose dialogue, if it is one, begins with a system message."""
    column = "messages" if "messages" in row else "prompt"
    messages = row.get(column)
    if not system_prompt or not isinstance(messages, list) or not messages:
        return row
    if messages[0]["role"] in ("system", "developer"):
        return row
    row = {name: value for name, value in row.items() if name != "instruction"}  # which would lack the system prompt
    return row | {column: [{"role": "system", "content": system_prompt}, *messages]}


def hold_out(examples: Examples, largest: int = LARGEST_HELD_OUT) -> tuple[Examples, Examples | None]:
    """Split off a twentieth to measure on; nothing when there are fewer than 20 rows.

    The choice depends on the number of rows only, so that runs with other seeds are measured on the same rows.

    Args:
        examples: all of them.
        largest: number of rows that are split off at most.

    Example:
        >>> rest, held_out = hold_out(Examples([{"text": str(n)} for n in range(40)], "text", "numbers"))
        >>> len(rest.rows), len(held_out.rows)
        (38, 2)
    """
    count = len(examples.rows)
    if count < SMALLEST_TO_HOLD_OUT:
        return examples, None
    wanted = min(largest, max(1, int(count * HELD_OUT_SHARE)))
    chosen = set(random.Random(count).sample(range(count), wanted))
    rest = examples.chosen([index for index in range(count) if index not in chosen])
    return rest, examples.chosen(sorted(chosen), blank=0, unused=(), notes=())
