from __future__ import annotations

from pathlib import Path

import pytest

from orthotune.errors import DataError
from orthotune.text.data import Examples, hold_out, load_examples
from orthotune.text.row_forms import FORMS
from tests.support.tiny_text import write_jsonl

MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"text": "hello", "id": 3}, "text"),
        ({"prompt": "1+1=", "completion": "2"}, "prompt-completion"),
        ({"messages": MESSAGES, "text": "rendered"}, "messages"),
        ({"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}, "prompt-completion"),
    ],
)
def test_formats_are_told_by_their_columns(tmp_path: Path, row: dict[str, object], name: str) -> None:
    examples = load_examples(str(write_jsonl(tmp_path / "d.jsonl", [row])))
    assert examples.format == name
    assert set(examples.rows[0]) == set(FORMS[name].columns)


def test_blank_rows_are_left_out(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [{"text": " "}, {"text": "word"}])
    assert load_examples(str(path)).rows == [{"text": "word"}]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("", "Found: no rows. Needed: at least one example"),
        ('{"text": ""}\n', "Found: 1 rows, all blank"),
        ('{"body": "a", "id": 1}\n', "Found: columns body, id. Needed: messages or prompt [+] completion or text"),
        ('{"text": "a"}\n{"body": "b"}\n', "d.jsonl, line 2. Found: columns body. Needed: text"),
        ('{"text": 7}\n', "line 1: column 'text'. Found: int '7'. Needed: a string"),
        ('{"messages": "hello"}\n', "'messages'. Found: str 'hello'. Needed: a list of {role, content}"),
    ],
)
def test_bad_rows_are_named_with_their_line(tmp_path: Path, lines: str, words: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(lines)
    with pytest.raises(DataError, match=words):
        load_examples(str(path))


def test_a_stated_format_is_held_to(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "a", "completion": "b", "text": "a b"}])
    assert load_examples(str(path), "text").rows == [{"text": "a b"}]
    with pytest.raises(DataError, match="Needed: messages [(]the data is read as messages[)]"):
        load_examples(str(path), "messages")


def test_missing_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no such file or directory"):
        load_examples(str(tmp_path / "none.jsonl"))
    import datasets

    def offline(name: str, split: str) -> None:
        raise ConnectionError(f"cannot reach {name} {split}")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(DataError, match="the hub answers: cannot reach owner/name test"):
        load_examples("owner/name:test")


def test_a_hub_name_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: [{"text": f"{name} {split}"}])
    assert load_examples("owner/name").rows == [{"text": "owner/name train"}]


def test_hold_out_is_disjoint_and_repeatable() -> None:
    rows = [{"text": str(index)} for index in range(100)]
    kept, held = hold_out(Examples(rows, "text", "here"))
    assert held is not None and len(held.rows) == 5
    assert sorted(int(row["text"]) for row in kept.rows + held.rows) == list(range(100))
    assert hold_out(Examples(rows, "text", "here"))[1] == held
    assert hold_out(Examples(rows[:19], "text", "here"))[1] is None
