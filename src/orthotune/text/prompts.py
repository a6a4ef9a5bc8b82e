"""Prompts that a model answers itself while it is trained, plain or conversations, with further columns beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orthotune.errors import DataError, nearest
from orthotune.runs.data_files import Row
from orthotune.text.data import is_dialogue

#: The column that trainers read.
PROMPT = "prompt"


@dataclass(frozen=True)
class Prompts:
    """Rows with a ``prompt``, all of one kind, and their further columns.

    Args:
        rows: each with ``prompt``, a text or a list of messages.
        source: of the rows, for messages.
        blank: rows of the source that have no prompt and are skipped.
        too_long: prompts that leave no room for an answer and are skipped.
    """

    rows: list[Row]
    source: str
    blank: int = 0
    too_long: int = 0

    @property
    def conversational(self) -> bool:
        """Whether the prompts are lists of messages."""
        return not isinstance(self.rows[0][PROMPT], str)

    def sentence(self) -> str:
        """What a run reports of its prompts before it trains.

        Example:
            >>> Prompts([{"prompt": "1 + 1 ="}], "sums", too_long=2).sentence()
            'data: 1 prompts. 2 are skipped, too long for max_length.'
        """
        found = [f"data: {len(self.rows):,} prompts."]
        if self.too_long:
            found.append(f"{self.too_long:,} are skipped, too long for max_length.")
        if self.blank:
            found.append(f"{self.blank:,} blank rows are skipped.")
        return " ".join(found)


def prompts_of(
    rows: Iterable[tuple[str, Row]], source: str, column: str = PROMPT, needs: Mapping[str, str] | None = None
) -> Prompts:
    """Rows as prompts.

    Args:
        rows: each with its place, for messages.
        source: of the rows.
        column: with the prompt.
        needs: further columns that every row must have, and what needs each of them.

    Raises:
        DataError: no row, no such column, a prompt of another type, or texts and conversations mixed.

    Example:
        >>> prompts_of([("line 1", {"question": "1 + 1?", "answer": "2"})], "sums", "question").rows
        [{'answer': '2', 'prompt': '1 + 1?'}]
    """
    placed = list(rows)
    if not placed:
        raise DataError(f"data {source!r}", got="no rows", needed="at least one prompt")
    kept: list[tuple[str, Row]] = []
    for place, row in placed:
        found = {key: value for key, value in row.items() if key not in (column, PROMPT)}
        found[PROMPT] = _prompt(row, column, place)
        if found[PROMPT] and (not isinstance(found[PROMPT], str) or found[PROMPT].strip()):
            _check_columns(row, place, needs or {})
            kept.append((place, found))
    if not kept:
        raise DataError(f"data {source!r}", got=f"{len(placed)} rows, all blank", needed="at least one prompt")
    plain = isinstance(kept[0][1][PROMPT], str)
    for place, row in kept:
        if isinstance(row[PROMPT], str) != plain:
            kinds = ("a text", "a list of messages")
            got = f"{kinds[plain]}, where {kept[0][0]} has {kinds[not plain]}"
            raise DataError(f"{place}: column {column!r}", got=got, needed="prompts of one kind")
    return Prompts([row for _, row in kept], source, len(placed) - len(kept))


def prompt_ids(tokenizer: Any, prompts: Sequence[Any], **template: Any) -> list[list[int]]:
    """The tokens of prompts as a trainer gives them to the model, ready for an answer.

    Args:
        tokenizer: of the model.
        prompts: texts, or lists of messages, which go through the chat template.
        **template: further arguments of the chat template.
    """
    if not prompts:
        return []
    if isinstance(prompts[0], str):
        found = tokenizer(text=list(prompts))["input_ids"]
    else:
        found = tokenizer.apply_chat_template(
            conversation=list(prompts), add_generation_prompt=True, tokenize=True, return_dict=True, **template
        )["input_ids"]
    return [list(ids) for ids in found]


def fitting(
    prompts: Prompts, tokenizer: Any, room: int, max_dropped: float = 1.0, named: Sequence[str] = (PROMPT,),
    **template: Any,
) -> Prompts:  # fmt: skip
    """The prompts that have at most ``room`` tokens.

    Args:
        prompts: to choose from.
        tokenizer: of the model.
        room: the most tokens of a prompt.
        max_dropped: share of the rows that may be too long or blank.
        named: columns with prompts, all of which must fit.
        **template: further arguments of the chat template.

    Raises:
        DataError: conversations for a tokenizer without a chat template, a prompt without a token, or too many rows
            that are skipped.
    """
    if prompts.conversational and not tokenizer.chat_template:
        raise DataError(
            f"data {prompts.source!r}: conversations",
            got="a tokenizer without a chat template",
            do="Use a chat model, or prompts that are texts",
        )
    longest = [0] * len(prompts.rows)
    for column in named:
        for place, ids in enumerate(prompt_ids(tokenizer, [row[column] for row in prompts.rows], **template)):
            if not ids:
                raise DataError(f"data {prompts.source!r}, prompt {place}", got="no token", needed="a prompt")
            longest[place] = max(longest[place], len(ids))
    rows = [row for row, count in zip(prompts.rows, longest, strict=True) if count <= room]
    lost = len(prompts.rows) - len(rows) + prompts.blank
    if not rows or lost > max_dropped * (len(prompts.rows) + prompts.blank):
        raise DataError(
            f"data {prompts.source!r}",
            got=f"{len(prompts.rows) - len(rows)} of {len(prompts.rows)} prompts with more than {room} tokens (the "
            f"longest has {max(longest)}), and {prompts.blank} blank rows",
            needed=f"at most {max_dropped:.0%} of the rows (max_dropped)",
            do="Pass a larger max_length, or a smaller max_completion_length",
        )
    return replace(prompts, rows=rows, too_long=len(prompts.rows) - len(rows))


def _prompt(row: Row, column: str, place: str) -> Any:
    if column not in row:
        close = nearest(column, row, 1) or [name for name in ("question", "messages", "instruction") if name in row]
        do = f"Write prompt_column={close[0]}" if close else "Name the column: prompt_column=NAME"
        raise DataError(place, got=f"columns {', '.join(sorted(row)) or '(none)'}", needed=f"column {column!r}", do=do)
    value = row[column]
    if value is None or isinstance(value, str):
        return value
    if not is_dialogue(value):
        got = f"{type(value).__name__} {str(value)[:40]!r}"
        raise DataError(f"{place}: column {column!r}", got=got, needed="a text, or a list of {role, content}")
    if value and value[-1]["role"] == "assistant":
        got = "a conversation that ends with a message of the assistant"
        raise DataError(f"{place}: column {column!r}", got=got, needed="a conversation that the model is to answer")
    return list(value)


def _check_columns(row: Row, place: str, needs: Mapping[str, str]) -> None:
    for column, why in needs.items():
        if row.get(column) is None:
            close = nearest(column, [name for name in row if row[name] is not None], 1)
            raise DataError(
                place,
                got=f"columns {', '.join(sorted(name for name in row if row[name] is not None))}",
                needed=f"column {column!r}, for {why}",
                do=f"Did you mean {close[0]!r}?" if close else None,
            )
