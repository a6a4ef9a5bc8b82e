"""Prompts with checkable answers: right, the same everywhere, and apart by split."""

from __future__ import annotations

import hashlib
import json
import re

import pytest

from orthotune.errors import DataError
from orthotune.worlds.checkable_prompts import SETS, rows_of

ASKED = r"What is (\d+) ([+-]) (\d+)\? Reply with the number alone\."


@pytest.mark.parametrize(
    ("name", "rows", "digest"),
    [("python-methods", (96, 32), "bd56638a08cf6569"), ("arithmetic", (512, 64), "954d608bef53b202")],
)
def test_the_rows_never_change_and_the_splits_have_none_in_common(
    name: str, rows: tuple[int, int], digest: str
) -> None:
    train, test = rows_of(f"{name}/train") or [], rows_of(f"{name}/test") or []
    assert (len(train), len(test)) == rows
    assert not {json.dumps(row["prompt"]) for row in train} & {json.dumps(row["prompt"]) for row in test}
    assert hashlib.sha256(json.dumps([train, test]).encode()).hexdigest()[:16] == digest


def test_the_answers_are_right() -> None:
    for split in ("train", "test"):
        for row in rows_of(f"arithmetic/{split}") or []:
            found = re.fullmatch(ASKED, row["prompt"][0]["content"])
            one, sign, other = found.groups() if found else ("", "", "")
            assert int(row["answer"]) == int(one) + (int(other) if sign == "+" else -int(other)) > 0
    methods = rows_of("python-methods/test") or []
    for row in methods:
        solved = row["prompt"] + ("" if row["prompt"].endswith(".") else " ") + row["answer"] + "\n"
        assert solved in row["context"]  # the teacher is shown the complete class


@pytest.mark.parametrize("name", SETS)
def test_a_split_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(DataError, match=f"no split 'tran'.*{name}/train or {name}/test. Did you mean '{name}/train'"):
        rows_of(f"{name}/tran")
    assert rows_of("mine/train") is None
