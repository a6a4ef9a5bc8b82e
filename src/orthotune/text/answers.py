"""Where the answers are in a tokenized dialogue: the tokens of the assistant's messages, for any chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orthotune.errors import DataError
from orthotune.files.json_file import json_object
from orthotune.metrics.text_loss import IGNORED
from orthotune.runs.data_files import Row


def answer_labels(tokenizer: Any, row: Row, ids: Sequence[int]) -> list[int]:
    """Labels of a dialogue in which the assistant's messages alone are learned, with the token that ends each of them.

    Args:
        tokenizer: with a chat template.
        row: ``messages``, and ``tools`` where the template shows them.
        ids: all tokens of the dialogue as the template renders them.

    Raises:
        DataError: the template renders the beginning of a dialogue in another way than the entire dialogue.
    """
    labels = [IGNORED] * len(ids)
    for index, message in enumerate(row["messages"]):
        if message["role"] == "assistant":
            end = _rendered(tokenizer, row, index + 1, prompt=False)
            stop = _common(end, ids)
            if stop < len(end):
                raise DataError(
                    "loss_on=answers",
                    got="a chat template that renders a message in another way once others follow",
                    needed="the same tokens for the beginning of a dialogue, whatever comes after",
                    do="Pass loss_on=all, or give every answer as an example of its own: prompt and completion",
                )
            start = _start(tokenizer, row, index, ids)
            labels[start:stop] = ids[start:stop]
    return labels


def first_answer(tokenizer: Any, row: Row, ids: Sequence[int]) -> int | None:
    """The position of the first token that a message of the assistant has in a dialogue; None where there is none."""
    places = [index for index, message in enumerate(row["messages"]) if message["role"] == "assistant"]
    return _start(tokenizer, row, places[0], ids) if places else None


def _start(tokenizer: Any, row: Row, index: int, ids: Sequence[int]) -> int:
    # Templates refuse a dialogue without any message.
    return _common(_rendered(tokenizer, row, index, prompt=True), ids) if index else 0


def _rendered(tokenizer: Any, row: Row, count: int, prompt: bool) -> list[int]:
    found = tokenizer.apply_chat_template(
        row["messages"][:count], tools=tools_of(row), add_generation_prompt=prompt, return_dict=True
    )
    return list(found["input_ids"])


def tools_of(row: Row) -> list[Any] | None:
    """The tools of a row, which data sets have as a list or as its JSON.

    Example:
        >>> tools_of({"tools": '[{"name": "f"}]'})
        [{'name': 'f'}]
    """
    tools = row.get("tools")
    return json_object(f'{{"tools": {tools}}}')["tools"] if isinstance(tools, str) else tools


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
