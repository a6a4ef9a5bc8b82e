"""Where the answers are in a tokenized dialogue: the tokens of the assistant's messages, for any chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orthotune.errors import DataError
from orthotune.files.json_file import json_value
from orthotune.metrics.text_loss import IGNORED, TokenRow
from orthotune.runs.data_files import Row

#: Two contents that begin with different characters, with which the place of a message's content is found.
PROBES = ("a", "b")


@dataclass(frozen=True)
class Dialogue:
    """Messages as the chat template of a tokenizer writes them.

    Args:
        tokenizer: with a chat template.
        messages: all of them.
        tools: that the template shows; None for none.
        place: of the dialogue in its source, for messages of errors.
    """

    tokenizer: Any
    messages: Sequence[dict[str, Any]]
    tools: list[Any] | None = None
    place: str = "a dialogue"

    def text(self, count: int | None = None, prompt: bool = False) -> str:
        """The first messages as the template writes them.

        Args:
            count: of messages; None for all.
            prompt: add the words after which the assistant answers.

        Raises:
            DataError: the template refuses the messages.
        """
        return self._written(list(self.messages[:count]), prompt)

    def ids(self, text: str) -> list[int]:
        """The tokens of a text of the template, which writes special tokens itself.

        Args:
            text: as :meth:`text` gives it.
        """
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def answers(self, first: int = 0) -> list[int]:
        """The numbers of the assistant's messages, from 0.

        Args:
            first: number of the first message that is looked at.
        """
        return [n for n, message in enumerate(self.messages) if n >= first and message["role"] == "assistant"]

    def start(self, number: int, text: str, ids: Sequence[int]) -> int:
        """The position of the first token of an answer: what follows the prompt that the model is given for it.

        Args:
            number: of the assistant's message, from 0.
            text: of messages to which this one belongs.
            ids: the tokens of ``text``.

        Raises:
            DataError: the template writes the messages before in another way once the answer follows.
        """
        prompt = self.prompt(number)
        # What an answer begins with may differ from the end of the prompt, the messages before may not.
        differs = number > 0 and not text.startswith(prompt)
        if differs and common_length(prompt, text) < common_length(self.text(number), prompt):
            raise DataError(
                f"{self.place}, message {number + 1} (assistant), with loss_on=answers",
                got="a chat template that writes the messages before in another way once their answer follows: "
                f"{_around(prompt, text)}",
                needed="an answer that follows the prompt which the model is given for it",
                do="Pass loss_on=all, or data without what is written in two ways, as a system message",
            )
        return common_length(self.ids(prompt), ids)

    def prompt(self, number: int) -> str:
        """The text that the model is given before it writes an answer.

        Args:
            number: of the assistant's message, from 0.
        """
        before = self.messages[:number]
        if any(message["role"] not in ("system", "developer") for message in before):
            return self.text(number, prompt=True)
        # Nobody spoke before, and templates refuse a dialogue without any question: what is alike for any two contents.
        one, other = (
            self._written([*before, {**self.messages[number], "content": probe}], prompt=False) for probe in PROBES
        )
        return one[: common_length(one, other)]

    def _written(self, messages: list[dict[str, Any]], prompt: bool) -> str:
        from jinja2.exceptions import TemplateError

        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, tools=self.tools, add_generation_prompt=prompt, tokenize=False
                )
            )
        except (TemplateError, TypeError, KeyError, AttributeError, IndexError, ValueError) as fault:
            raise DataError(
                f"{self.place}: the chat template refuses the dialogue",
                got=f"{fault}, for the roles {_roles(messages)}",
                do="Change the messages, or choose a model whose template takes them",
            ) from fault


def answer_rows(dialogue: Dialogue, first: int = 0) -> list[TokenRow]:
    """A dialogue as rows in which the assistant's messages alone are learned, with the token that ends each of them.

    Every answer is learned once, as the template writes it when it is the newest one. Most templates write it so in
    the complete dialogue, too, and there is one row. Where a template writes an answer in another way once others
    follow, as those do that show the newest reasoning alone, the dialogue up to that answer is a row of its own.

    Args:
        dialogue: the messages.
        first: number of the first message that may be learned, from 0.

    Returns:
        Rows in full length, the shortest first; at least one, in which nothing is learned where nobody answers.

    Raises:
        DataError: the template refuses the dialogue, or writes a question in another way once its answer follows.
    """
    waiting, count = dialogue.answers(first), len(dialogue.messages)
    rows: list[TokenRow] = []
    while not rows or waiting:
        text = dialogue.text(count)
        ids = dialogue.ids(text)
        labels = [IGNORED] * len(ids)
        later = []
        for number in waiting:
            end = text if number + 1 == count else dialogue.text(number + 1)
            if not text.startswith(end):
                later.append(number)
                continue
            start, stop = dialogue.start(number, text, ids), common_length(dialogue.ids(end), ids)
            labels[start:stop] = ids[start:stop]
        rows.append(TokenRow(ids, labels))
        waiting, count = later, later[-1] + 1 if later else count
    return rows[::-1]


def first_answer(dialogue: Dialogue, text: str, ids: Sequence[int]) -> int | None:
    """The position of the first token that a message of the assistant has in a dialogue; None where there is none.

    Args:
        dialogue: the messages.
        text: of all of them.
        ids: the tokens of ``text``.
    """
    answers = dialogue.answers()
    if not answers:
        return None
    return common_length(dialogue.ids(dialogue.prompt(answers[0])), ids)


def tools_of(row: Row) -> list[Any] | None:
    """The tools of a row, which data sets have as a list or as its JSON.

    Args:
        row: of a data set.

    Example:
        >>> tools_of({"tools": '[{"name": "f"}]'})
        [{'name': 'f'}]
    """
    tools = row.get("tools")
    return json_value(tools) if isinstance(tools, str) else tools


def common_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many leading elements two sequences have in common.

    Args:
        one: tokens, or a text.
        other: the same kind.

    Example:
        >>> common_length([1, 2, 3], [1, 2, 4])
        2
    """
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _around(prompt: str, text: str) -> str:
    """Where two texts part, quoted."""
    at = common_length(prompt, text)
    begin = max(0, at - 10)
    return f"{prompt[begin : at + 20]!r} becomes {text[begin : at + 20]!r}"


def _roles(messages: Sequence[dict[str, Any]]) -> str:
    roles = [str(message.get("role")) for message in messages]
    return ", ".join(roles[:8]) + (" and others" if len(roles) > 8 else "")
