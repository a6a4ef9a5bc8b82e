"""Examples as the data sets that TRL's trainers tokenize themselves, to compare with."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, Features, Json, Value

from orthotune.text.data import Examples
from orthotune.text.row_forms import is_dialogue


def table_of(examples: Examples) -> Any:
    """The examples as a ``datasets.Dataset`` in which every row keeps its own fields of messages, and no others."""
    columns = list(dict.fromkeys(column for row in examples.rows for column in row))
    rows = [{column: row.get(column) for column in columns} for row in examples.rows]
    dialogues = [column for column in columns if any(is_dialogue(row[column]) for row in rows)]
    if not dialogues:
        return Dataset.from_list(rows)
    return Dataset.from_list(
        rows, features=Features({name: Json() if name in dialogues else Value("string") for name in columns})
    )
