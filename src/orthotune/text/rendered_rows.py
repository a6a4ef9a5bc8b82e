"""Examples of any format as rows of tokens that are all measured: dialogues through the tokenizer's chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orthotune.errors import DataError
from orthotune.metrics.text_loss import TokenRow, pieces, token_rows
from orthotune.runs.data_files import Row
from orthotune.text.answers import tools_of
from orthotune.text.data import Examples, is_dialogue


def check_template(tokenizer: Any, examples: Examples) -> None:
    """Refuse dialogues for a tokenizer that cannot write them.

    Raises:
        DataError: dialogues, and the tokenizer has no chat template.
    """
    if any(is_dialogue(value) for value in examples.rows[0].values()) and not tokenizer.chat_template:
        raise DataError(
            f"data {examples.source!r}: dialogues",
            got="a tokenizer without a chat template",
            do="Use a chat model, or data with text, or prompt and completion",
        )


def rendered_rows(tokenizer: Any, examples: Examples, max_length: int) -> list[TokenRow]:
    """Every token of the examples, in rows of at most ``max_length``, as a finetuning on them has it.

    Args:
        tokenizer: of the model.
        examples: of any format.
        max_length: tokens of a row; longer examples are cut into several rows.

    Raises:
        DataError: dialogues for a tokenizer without a chat template.
    """
    check_template(tokenizer, examples)
    rows: list[TokenRow] = []
    for row in examples.rows:
        messages = _messages(row)
        if messages is None:
            rows += token_rows(tokenizer, ["".join(row[key] for key in _texts_of(row))], max_length)
        else:
            ids = tokenizer.apply_chat_template(messages, tools=tools_of(row), return_dict=True)["input_ids"]
            rows += pieces(list(ids), max_length)
    return rows


def _texts_of(row: Row) -> Sequence[str]:
    return ["text"] if "text" in row else ["prompt", "completion"]


def _messages(row: Row) -> list[Any] | None:
    """All messages of a dialogue; None for texts."""
    if "messages" in row:
        return list(row["messages"])
    prompt, completion = row.get("prompt"), row.get("completion")
    return [*prompt, *completion] if isinstance(prompt, list) and isinstance(completion, list) else None
