"""Preferences of every spelling become one form; what cannot be read is refused with its place."""

from __future__ import annotations

from typing import Any

import pytest

from orthotune.errors import DataError
from orthotune.text.preferences import (
    held_out_from,
    labelled_of,
    pairs_of,
    preference_table,
    shuffled,
)


def _user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def _assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def _placed(*rows: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(f"pairs.jsonl, line {number}", row) for number, row in enumerate(rows, start=1)]


DIALOGUE = {"prompt": [_user("Hi")], "chosen": [_assistant("Yes")], "rejected": [_assistant("No")]}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (DIALOGUE, DIALOGUE),
        ({"chosen": [_user("Hi"), _assistant("Yes")], "rejected": [_user("Hi"), _assistant("No")]}, DIALOGUE),
        (  # as UltraFeedback has them: the prompt as a text, and again in both answers
            {"prompt": "Hi", "chosen": [_user("Hi"), _assistant("Yes")], "rejected": [_user("Hi"), _assistant("No")]},
            DIALOGUE,
        ),
        (
            DIALOGUE | {"chosen": [_user("Hi"), _assistant("Yes")], "rejected": [_user("Hi"), _assistant("No")]},
            DIALOGUE,
        ),
        ({"prompt": [_user("Hi")], "chosen": "Yes", "rejected": "No"}, DIALOGUE),
        ({"prompt": "Hi", "chosen": [_assistant("Yes")], "rejected": [_assistant("No")]}, DIALOGUE),
        (
            {"chosen": "Q: 1 + 1? A: 2", "rejected": "Q: 1 + 1? A: 21"},
            {"prompt": "Q: 1 + 1? A:", "chosen": " 2", "rejected": " 21"},
        ),
        (
            DIALOGUE | {"tools": [{"name": "add"}], "margin": "2", "score": 5, "note": None},
            DIALOGUE | {"tools": '[{"name": "add"}]', "margin": 2.0},
        ),
    ],
)
def test_spellings_of_a_pair(row: dict[str, Any], expected: dict[str, Any]) -> None:
    found = pairs_of(_placed(row), "pairs.jsonl")
    assert found.rows == [expected]
    assert found.unused == (("score",) if "score" in row else ())
    table = preference_table(found)
    assert {key: value for key, value in table[0].items()} == expected  # messages keep their own fields, no others


@pytest.mark.parametrize("label", [True, "true", "TRUE", 1, "1"])
def test_spellings_of_a_label(label: Any) -> None:
    rows = _placed({"prompt": "a", "completion": " b", "label": label}, {"prompt": "a", "completion": " c", "label": 0})
    found = labelled_of(rows, "thumbs.csv")
    assert [row["label"] for row in found.rows] == [True, False] == list(preference_table(found)["label"])


def test_dialogues_with_a_label_need_no_prompt_and_pairs_become_two_answers() -> None:
    dialogue = {"completion": [_user("Hi"), _assistant("Yes")], "label": True}
    other = {"completion": [_user("Hi"), _assistant("No")], "label": False}
    alone = labelled_of(_placed(dialogue, other), "thumbs.jsonl")
    pairs = labelled_of(_placed(DIALOGUE), "pairs.jsonl")
    assert alone.rows == pairs.rows and pairs.format == alone.format == "labelled"
    assert alone.rows[0] == {"prompt": [_user("Hi")], "completion": [_assistant("Yes")], "label": True}


def test_empty_answers_and_answers_that_are_equal_are_counted() -> None:
    good = {"prompt": "a", "chosen": " b", "rejected": " c"}
    found = pairs_of(_placed(good, good | {"chosen": "  "}, good | {"rejected": " b"}, good | {"rejected": ""}), "x")
    assert (len(found.rows), found.blank, found.equal) == (1, 2, 1)
    many = pairs_of(_placed(*({"prompt": str(n), "chosen": " b", "rejected": " c"} for n in range(40))), "x")
    rest, held_out = held_out_from(many)
    assert (len(rest.rows), len(held_out.rows)) == (38, 2)  # type: ignore[union-attr]
    thumbs = labelled_of(_placed(*({"prompt": str(n), "chosen": "b", "rejected": "c"} for n in range(40))), "x")
    left, measured = held_out_from(thumbs)  # both answers of a prompt stay together
    assert not {row["prompt"] for row in left.rows} & {row["prompt"] for row in measured.rows}  # type: ignore[union-attr]
    assert [row["label"] for row in measured.rows] == [True, False] * 2  # type: ignore[union-attr]
    alone = labelled_of(_placed(*({"prompt": str(n), "completion": "b", "label": n == 1} for n in range(40))), "x")
    assert held_out_from(alone) == (alone, None)
    assert shuffled(rest, 1).rows == shuffled(rest, 1).rows != shuffled(rest, 2).rows
    assert sorted(shuffled(rest, 1).rows, key=str) == sorted(rest.rows, key=str)


PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
THUMB = {"prompt": "a", "completion": "b", "label": True}


@pytest.mark.parametrize(
    ("read", "rows", "words"),
    [
        (pairs_of, [], "pairs.jsonl'. Found: no rows"),
        (pairs_of, [{"prompt": "a", "chosen": "b"}], "line 1: no rejected. Found: columns chosen, prompt."),
        (pairs_of, [{"prompt": "a", "chosen": "b", "reject": "c"}], "Rename 'reject' to 'rejected'"),
        (pairs_of, [PAIR, PAIR | {"chosen": None}], "line 2: no chosen"),
        (pairs_of, [PAIR | {"chosen": 3}], "line 1: column 'chosen'. Found: int '3'. Needed: a text, or a list of"),
        (pairs_of, [PAIR | {"chosen": [{"from": "gpt", "value": "b"}]}], "column 'chosen'. Found: list"),
        (pairs_of, [PAIR, DIALOGUE], "line 2. Found: messages. Needed: texts, as in pairs.jsonl, line 1"),
        (pairs_of, [PAIR | {"rejected": "b"}], "1 rows: 0 with an empty prompt or answer, 1 whose"),
        (pairs_of, [PAIR | {"rejected": " "}], "1 with an empty prompt or answer"),
        (pairs_of, [PAIR | {"margin": "large"}], "column 'margin'. Found: 'large'. Needed: a number"),
        (pairs_of, [{"chosen": "a b", "rejected": [_assistant("c")]}], "a text and a list of messages"),
        (pairs_of, [{"prompt": "a", "chosen": [_user("x"), _user("a"), _assistant("b")],
                     "rejected": [_user("a"), _assistant("c")]}], "other messages before the prompt"),
        (pairs_of, [{"chosen": [_user("a")], "rejected": [_user("b")]}], "no prompt. Found: two dialogues that"),
        (labelled_of, [THUMB | {"label": "good"}], "column 'label'. Found: 'good'. Needed: true (wanted) or false"),
        (labelled_of, [THUMB | {"label": 2}], "column 'label'. Found: 2"),
        (labelled_of, [THUMB | {"label": [True]}], "column 'label'. Found: [True]"),
        (labelled_of, [THUMB, THUMB], "column 'label'. Found: true in all 2 rows. Needed: answers with label true and"),
        (labelled_of, [{"completion": "b", "label": True}], "line 1: no prompt. Found: columns completion, label"),
        (labelled_of, [{"prompt": "b", "completion": "c"}], "no label"),
        (labelled_of, [THUMB | {"completion": ""}], "1 with an empty prompt or answer"),
        (labelled_of, [{"text": "b"}], "no completion and no label. Found: columns text. Needed: prompt"),
    ],
)  # fmt: skip
def test_wrong_rows_are_refused_with_their_place(read: Any, rows: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(DataError) as found:
        read(_placed(*rows), "pairs.jsonl")
    assert words in str(found.value)
