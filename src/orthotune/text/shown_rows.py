"""Examples shown as tokens, with the learned ones marked: what a run would train on, before anything is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from orthotune.files.plain_text import plain
from orthotune.metrics.text_loss import IGNORED, TokenRow

#: Examples that are shown.
SHOWN = 3
#: Tokens of a longer run of learned tokens, or of others, that are shown of its beginning and its end.
BEGINNING, END = 100, 40
#: Runs of learned and of other tokens that are shown of one row.
RUNS = 24
#: What a tokenizer decodes a part of a character to.
INCOMPLETE = "\ufffd"


@dataclass(frozen=True)
class Marks:
    """What stands around learned tokens, and between tokens.

    Args:
        before: a run of learned tokens.
        after: a run of learned tokens.
        between: two tokens.
        legend: what the marks mean.
    """

    before: str
    after: str
    between: str
    legend: str


COLOURED = Marks("\x1b[1;32m", "\x1b[0m", "·", "Learned tokens are bold and green; · separates tokens.")
BRACKETS = Marks("⟦", "⟧", "·", "Learned tokens stand in ⟦ ⟧; · separates tokens.")
#: For terminals that have the characters of ASCII alone.
ASCII = Marks("[[", "]]", "|", "Learned tokens stand in [[ ]]; | separates tokens.")


@dataclass(frozen=True)
class ShownExample:
    """One example of the data.

    Args:
        title: where the example is in its source.
        rows: its tokens by name, as ``chosen`` and ``rejected`` of a pair; a single row has the name "".
    """

    title: str
    rows: Mapping[str, TokenRow]


def shown_lines(
    tokenizer: Any, examples: Sequence[ShownExample], facts: Sequence[str], marks: Marks, max_length: int | None = None
) -> list[str]:
    """Examples as tokens and facts about the data, as lines to print. Control characters of the data are escaped.

    Args:
        tokenizer: of the model.
        examples: the first three are shown.
        facts: sentences, as counts of examples and tokens.
        marks: for a terminal with colours or without.
        max_length: tokens of a row that are trained on; None for all.

    Example:
        >>> class Tokenizer:
        ...     def decode(self, ids): return "".join("abc\\x1b"[one] for one in ids)
        >>> row = TokenRow([0, 1, 3, 2], [-100, -100, 3, 2])
        >>> example = ShownExample("d.jsonl, line 1", {"": row})
        >>> for line in shown_lines(Tokenizer(), [example], ["1 example."], BRACKETS):
        ...     print(line)
        d.jsonl, line 1: 4 tokens, 2 of them learned
        a·b·⟦\\x1b·c⟧
        <BLANKLINE>
        Learned tokens stand in ⟦ ⟧; · separates tokens.
        1 example.
    """
    lines: list[str] = []
    for example in examples[:SHOWN]:
        for name, full in example.rows.items():
            row = TokenRow(full.input_ids[:max_length], full.labels[:max_length])
            title = ", ".join(part for part in (plain(example.title), name) if part)
            learned = sum(label != IGNORED for label in row.labels)
            title += f": {len(row.input_ids):,} tokens, {learned:,} of them learned"
            if len(full.input_ids) > len(row.input_ids):
                title += f"; {len(full.input_ids) - len(row.input_ids):,} more are cut off"
            text = "".join(_marked(tokenizer, row, marks))
            # A line break separates tokens by itself, and belongs to the run of learned tokens that it ends.
            text = text.replace(f"\n{marks.after}", f"{marks.after}\n").replace(f"\n{marks.between}", "\n")
            lines += [title, *text.rstrip("\n").split("\n"), ""]
    return [*lines, marks.legend, *map(plain, facts)]


def _marked(tokenizer: Any, row: TokenRow, marks: Marks) -> Iterator[str]:
    """The row as text: tokens with separators, runs of learned ones between their marks."""
    pairs = list(zip(row.input_ids, row.labels, strict=True))
    runs = [(learned, [token for token, _ in run]) for learned, run in groupby(pairs, lambda pair: pair[1] != IGNORED)]
    for number, (learned, ids) in enumerate(runs[:RUNS]):
        if number:
            yield marks.between
        yield (marks.before if learned else "") + _run(tokenizer, ids, marks) + (marks.after if learned else "")
    if len(runs) > RUNS:
        left = sum(len(ids) for _, ids in runs[RUNS:])
        yield f" ... {left:,} more tokens"


def _run(tokenizer: Any, ids: Sequence[int], marks: Marks) -> str:
    if len(ids) <= BEGINNING + END:
        return marks.between.join(_tokens(tokenizer, ids))
    begin, end = (marks.between.join(_tokens(tokenizer, part)) for part in (ids[:BEGINNING], ids[-END:]))
    return f"{begin} ... {len(ids) - BEGINNING - END:,} tokens ... {end}"


def _tokens(tokenizer: Any, ids: Sequence[int]) -> Iterator[str]:
    """The text of each token; tokens that are parts of one character are one text."""
    waiting: list[int] = []
    for one in ids:
        waiting.append(one)
        text = tokenizer.decode(waiting)
        if not text.endswith(INCOMPLETE) or len(waiting) >= 4:  # a character of UTF-8 has at most four bytes
            yield _escaped(text)
            waiting = []
    if waiting:
        yield _escaped(tokenizer.decode(waiting))


def _escaped(text: str) -> str:
    """A token without control characters; a line break is written as its escape, and breaks the line as well."""
    return plain(text).replace("\n", "\\n\n")
