"""Examples of any form as tokens with labels, before anything is cut: what a finetuning learns, without its model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from orthotune.errors import DataError, nearest
from orthotune.metrics.text_loss import IGNORED, TokenRow, pieces
from orthotune.runs.data_files import Row
from orthotune.text.answers import Dialogue, answer_rows, common_length, first_answer, tools_of
from orthotune.text.data import Examples, is_dialogue
from orthotune.text.row_forms import ROLES

#: The prompt of Alpaca's authors, for models without a chat template.
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)


@dataclass(frozen=True)
class Labelling:
    """Which tokens of the rows are learned.

    Args:
        answers_only: of dialogues, the messages of the assistant alone.
        completions_only: of prompts with completions, the completions alone.
        max_length: nothing is learned of a dialogue whose first answer begins beyond so many tokens; None for no limit.
        texts_in_pieces: running text is cut into rows of ``max_length`` tokens, so that none of it is lost.
    """

    answers_only: bool = False
    completions_only: bool = True
    max_length: int | None = None
    texts_in_pieces: bool = False


@dataclass(frozen=True)
class LabelledRows:
    """Tokenized examples in full length.

    Args:
        rows: their tokens; those labelled -100 are read and not learned.
        examples: for each row, the number of the example that it comes from.
        split: how many dialogues became several rows.
    """

    rows: list[TokenRow]
    examples: list[int]
    split: int = 0

    def table(self) -> Any:
        """The rows as a ``datasets.Dataset`` with ``input_ids`` and ``labels``, which TRL takes as they are."""
        from datasets import Dataset

        return Dataset.from_dict(
            {"input_ids": [row.input_ids for row in self.rows], "labels": [row.labels for row in self.rows]}
        )


def check_template(tokenizer: Any, examples: Examples) -> None:
    """Refuse dialogues for a tokenizer that cannot write them.

    Args:
        tokenizer: of the model.
        examples: of any form.

    Raises:
        DataError: dialogues and no chat template, a template that drops their contents, or a role that templates do
            not have and this one does not name.
    """
    template, looked_at = tokenizer.chat_template, False
    for number, row in enumerate(examples.rows):
        # Any dialogue: other recipes have them in other columns, as chosen and rejected.
        messages = [message for value in row.values() if is_dialogue(value) for message in value]
        if not messages:
            continue
        if not template:
            if "instruction" in row:
                continue
            raise DataError(
                f"data {examples.source!r}: dialogues",
                got="a tokenizer without a chat template",
                do="Use a chat model, or data with text, or prompt and completion",
            )
        if not looked_at and (complete := messages_of(row)) is not None:
            _check_written(Dialogue(tokenizer, complete, tools_of(row), examples.place(number)))
            looked_at = True
        for message in messages:
            if (role := message["role"]) not in ROLES and not _names(template, role):
                close = nearest(role, ROLES, count=1)
                raise DataError(
                    examples.place(number),
                    got=f"the role {role!r}",
                    needed=f"one of {', '.join(ROLES)}",
                    do=f"Did you mean {close[0]!r}?" if close else f"Say who that is: roles={{{role}: user}}",
                )


def labelled_rows(tokenizer: Any, examples: Examples, labelling: Labelling) -> LabelledRows:
    """All examples as tokens with labels, as TRL's trainer for supervised finetuning makes them.

    Args:
        tokenizer: of the model.
        examples: of any form.
        labelling: which tokens are learned.

    Returns:
        At least one row for each example, in their order.

    Raises:
        DataError: a dialogue that the chat template refuses; names its place.
    """
    check_template(tokenizer, examples)
    rows: list[TokenRow] = []
    numbers: list[int] = []
    split = 0
    for number, row in enumerate(examples.rows):
        found = list(_rows_of(tokenizer, row, labelling, examples.place(number)))
        rows += found
        numbers += [number] * len(found)
        split += len(found) > 1 and "text" not in row
    return LabelledRows(rows, numbers, split)


def messages_of(row: Row) -> list[Any] | None:
    """All messages of a dialogue; None for texts.

    Args:
        row: of examples.

    Example:
        >>> messages_of({"text": "a"}) is None
        True
    """
    if "messages" in row:
        return list(row["messages"])
    prompt, completion = row.get("prompt"), row.get("completion")
    return [*prompt, *completion] if isinstance(prompt, list) and isinstance(completion, list) else None


def plain_text(row: Row) -> tuple[str, str]:
    """The prompt, which may be empty, and the text to learn of a row that no chat template writes.

    Args:
        row: of examples, without a dialogue; or of the form ``alpaca``.

    Example:
        >>> plain_text({"prompt": "1 + 1 =", "completion": " 2"})
        ('1 + 1 =', ' 2')
    """
    if "instruction" in row:
        return ALPACA.format(instruction=row["instruction"]), row["completion"][0]["content"]
    return ("", row["text"]) if "text" in row else (row["prompt"], row["completion"])


def _rows_of(tokenizer: Any, row: Row, labelling: Labelling, place: str) -> Iterator[TokenRow]:
    messages = messages_of(row)
    if messages is None or not tokenizer.chat_template:
        prompt, text = plain_text(row)
        end = tokenizer.eos_token
        text += end if end is not None and not text.endswith(end) else ""
        ids = list(tokenizer(text=prompt + text)["input_ids"])
        if "text" in row and labelling.texts_in_pieces and labelling.max_length is not None:
            yield from pieces(ids, labelling.max_length)
            return
        start = common_length(tokenizer(text=prompt)["input_ids"], ids) if prompt and labelling.completions_only else 0
        yield _labelled_from(ids, start)
        return
    dialogue = Dialogue(tokenizer, messages, tools_of(row), place)
    asked = len(row["prompt"]) if "prompt" in row else 0
    if labelling.answers_only:
        yield from answer_rows(dialogue, asked)
        return
    text = dialogue.text()
    ids = dialogue.ids(text)
    start = 0
    if asked and labelling.completions_only:
        start = common_length(dialogue.ids(dialogue.text(asked, prompt=True)), ids)
    elif not asked and labelling.max_length is not None and len(ids) > labelling.max_length:
        answer = first_answer(dialogue, text, ids)
        start = len(ids) if answer is not None and answer >= labelling.max_length else 0
    yield _labelled_from(ids, start)


def _check_written(dialogue: Dialogue) -> None:
    """Refuse a template that drops texts, as some do that read contents from lists of parts."""
    contents = [one["content"].strip() for one in dialogue.messages if isinstance(one.get("content"), str)]
    contents = [content for content in contents if content]
    text = dialogue.text() if contents else ""
    if contents and not any(content[-20:] in text for content in contents):
        raise DataError(
            dialogue.place,
            got="a chat template that writes none of the messages' contents",
            needed='contents as the template reads them, often a list of parts: [{"type": "text", "text": "..."}]',
        )


def _labelled_from(ids: list[int], start: int) -> TokenRow:
    return TokenRow(ids, [IGNORED] * start + ids[start:])


def _names(template: str | Mapping[str, str], role: str) -> bool:
    """Whether a template, or one of several, compares with a role."""
    written = template if isinstance(template, str) else " ".join(template.values())
    return f"'{role}'" in written or f'"{role}"' in written
