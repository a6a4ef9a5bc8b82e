"""Examples as tokens: what is learned is marked, long runs are shortened, and nothing in the data moves a terminal."""

from __future__ import annotations

from typing import Any

import pytest

from orthotune.metrics.text_loss import TokenRow
from orthotune.text.shown_rows import ASCII, BRACKETS, COLOURED, Marks, ShownExample, shown_lines
from tests.support.tiny_text import make_tokenizer


def _row(tokenizer: Any, *parts: tuple[str, bool]) -> TokenRow:
    ids, labels = [], []
    for text, learned in parts:
        new = tokenizer(text)["input_ids"]
        ids += new
        labels += new if learned else [-100] * len(new)
    return TokenRow(ids, labels)


def _shown(row: TokenRow, marks: Marks = BRACKETS, **options: Any) -> list[str]:
    return shown_lines(make_tokenizer(), [ShownExample("d.jsonl, line 1", {"": row})], [], marks, **options)[:-2]


@pytest.mark.parametrize(
    ("marks", "line"),
    [
        (BRACKETS, "h·i·⟦y·o⟧·?"),
        (ASCII, "h|i|[[y|o]]|?"),
        (COLOURED, "h·i·\x1b[1;32my·o\x1b[0m·?"),
    ],
)
def test_learned_tokens_are_marked(marks: Marks, line: str) -> None:
    row = _row(make_tokenizer(), ("hi", False), ("yo", True), ("?", False))
    assert _shown(row, marks) == ["d.jsonl, line 1: 5 tokens, 2 of them learned", line]


def test_characters_of_several_tokens_and_line_breaks() -> None:
    row = _row(make_tokenizer(), ("é紅\n", False), ("🙂\n", True), ("b", False))
    assert _shown(row)[1:] == ["é·紅·\\n", "⟦🙂·\\n⟧", "b"]


def test_control_characters_are_escaped() -> None:
    row = _row(make_tokenizer(), ("\x1b[2J\r\x07\u202e\t\x9b", True))
    (line,) = _shown(row, BRACKETS)[1:]
    assert line == "⟦\\x1b·[·2·J·\\r·\\x07·\\u202e·\\t·\\x9b⟧"
    titled = shown_lines(make_tokenizer(), [ShownExample("\x1bA", {"": row})], ["\x1bB"], BRACKETS)
    assert titled[0].startswith("\\x1bA:") and titled[-1] == "\\x1bB"


def test_long_runs_and_rows_are_shortened() -> None:
    tokenizer = make_tokenizer()
    long = _shown(_row(tokenizer, ("a" * 1000, False), ("b" * 141, True)))
    assert long[0].endswith("1,141 tokens, 141 of them learned")
    assert " ... 860 tokens ... " in long[1] and "⟦b·" in long[1] and " ... 1 tokens ... " in long[1]
    many = _shown(_row(tokenizer, *[("a", False), ("b", True)] * 100))
    assert many[1].endswith(" ... 176 more tokens")
    cut = _shown(_row(tokenizer, ("abc", False), ("defg", True)), max_length=5)
    assert cut == ["d.jsonl, line 1: 5 tokens, 2 of them learned; 2 more are cut off", "a·b·c·⟦d·e⟧"]


def test_pairs_have_names_and_three_examples_are_shown() -> None:
    tokenizer = make_tokenizer()
    pair = {name: _row(tokenizer, ("q", False), (name[0], True)) for name in ("chosen", "rejected")}
    lines = shown_lines(tokenizer, [ShownExample(f"line {n}", pair) for n in range(5)], ["5 pairs."], BRACKETS)
    assert lines[:6] == ["line 0, chosen: 2 tokens, 1 of them learned", "q·⟦c⟧", "",
                         "line 0, rejected: 2 tokens, 1 of them learned", "q·⟦r⟧", ""]  # fmt: skip
    assert len(lines) == 3 * 6 + 2 and lines[-1] == "5 pairs."
