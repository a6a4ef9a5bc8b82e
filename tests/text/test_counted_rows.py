"""What of the data is not learned is counted, said before the training, in the record, and refused when it is most."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orthotune.errors import DataError
from orthotune.recipes import sft
from orthotune.recipes.settings import SFTSettings
from orthotune.text.data import load_examples
from tests.support.tiny_text import save_model, write_jsonl


def _run(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> tuple[Any, str]:
    said: list[str] = []
    data = str(write_jsonl(folder / "d.jsonl", rows))
    given: dict[str, Any] = {
        "model": str(save_model(folder / "model", "float32", chat=True)), "data": data,
        "eval_data": data, "old_data": "none",
        "steps": 1, "batch_size": 1, "max_length": 32, "eval_every": 1, "output": folder / "run",
    }  # fmt: skip
    record = sft.run(SFTSettings(**(given | settings)), say=said.append, bar=False)
    return record, "\n".join(said)


def _dialogue(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def test_prompts_without_an_answer_and_cut_answers(tmp_path: Path) -> None:
    short, long, cut = "ab", "a" * 40, "b" * 40
    rows = [{"prompt": p, "completion": c, "id": 1} for p, c in [(short, "b"), (long, "b"), (short, cut)]]
    record, said = _run(tmp_path, [*rows, {"prompt": "", "completion": "b", "id": 2}])
    counts = record.data["train"]
    assert {k: counts[k] for k in ("examples", "cut", "dropped", "blank")} == {
        "examples": 3, "cut": 1, "dropped": 1, "blank": 1
    }  # fmt: skip
    # Characters are tokens: two of each prompt, one and its end of the first answer, 30 of the one that is cut.
    assert (counts["tokens"], counts["trained_tokens"]) == (4 + 32, 2 + 30)
    assert record.data == json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert "new: 1 of 3 examples are not measured" in said
    for words in ("3 examples", "1 have nothing to learn in 32 tokens", "1 lose", "1 blank", "not used: id"):
        assert words in said


def test_dialogues_whose_answer_is_lost_are_not_learned_without_it(tmp_path: Path) -> None:
    record, said = _run(tmp_path, [_dialogue("a", "b")] * 2 + [_dialogue("a" * 60, "b")], max_length=48)
    assert record.data["train"]["dropped"] == 1 and "1 have nothing to learn in 48 tokens" in said


def test_data_of_which_most_is_lost_is_refused(tmp_path: Path) -> None:
    rows = [{"prompt": "a" * 40, "completion": "b"}] * 3 + [{"prompt": "a", "completion": "b"}]
    with pytest.raises(DataError, match=r"3 of 4 examples with nothing to learn in their first 32 tokens.*at most 50%"):
        _run(tmp_path, rows)
    record, _ = _run(tmp_path, rows, max_dropped=0.8)
    assert record.data["train"]["dropped"] == 3


def test_running_text_loses_nothing(tmp_path: Path) -> None:
    record, said = _run(tmp_path, [{"text": "one text " * 20}] * 4)
    assert record.data["train"]["cut"] == record.data["train"]["dropped"] == 0 and "lose what" not in said


def test_blank_rows_and_columns_that_are_not_read_are_kept_in_mind(tmp_path: Path) -> None:
    examples = load_examples(str(write_jsonl(tmp_path / "d.jsonl", [{"text": "a", "id": 1}, {"text": " ", "id": 2}])))
    assert (examples.blank, examples.unused) == (1, ("id",))
