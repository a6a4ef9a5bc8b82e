"""Examples of any format as rows of tokens that are all measured: dialogues through the tokenizer's chat template."""

from __future__ import annotations

from typing import Any

from orthotune.metrics.text_loss import TokenRow, pieces, token_rows
from orthotune.text.answers import Dialogue, tools_of
from orthotune.text.data import Examples
from orthotune.text.labelled_rows import check_template, messages_of, plain_text

__all__ = ["check_template", "rendered_rows"]


def rendered_rows(tokenizer: Any, examples: Examples, max_length: int) -> list[TokenRow]:
    """Every token of the examples, in rows of at most ``max_length``, as a finetuning on them has it.

    Args:
        tokenizer: of the model.
        examples: of any format.
        max_length: tokens of a row; longer examples are cut into several rows.

    Raises:
        DataError: dialogues for a tokenizer without a chat template, or that its template refuses.
    """
    check_template(tokenizer, examples)
    rows: list[TokenRow] = []
    for number, row in enumerate(examples.rows):
        messages = messages_of(row)
        if messages is None or not tokenizer.chat_template:
            rows += token_rows(tokenizer, ["".join(plain_text(row))], max_length)
        else:
            dialogue = Dialogue(tokenizer, messages, tools_of(row), examples.place(number))
            rows += pieces(dialogue.ids(dialogue.text()), max_length)
    return rows
