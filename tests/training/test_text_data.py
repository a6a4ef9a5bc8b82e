from __future__ import annotations

from pathlib import Path

import pytest

from orthotune.errors import DataError
from orthotune.training import text_data
from orthotune.training.text_data import Examples, hold_out, load_examples
from tiny_text import write_jsonl

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
    assert set(examples.rows[0]) == set(text_data.COLUMNS[name])


def test_parquet_and_json(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["a", "b"], "n": [1, 2]}), tmp_path / "d.parquet")
    assert load_examples(str(tmp_path / "d.parquet")).rows == [{"text": "a"}, {"text": "b"}]
    (tmp_path / "d.json").write_text('[{"text": "c"}]')
    assert load_examples(str(tmp_path / "d.json")).rows == [{"text": "c"}]


def test_a_directory_is_all_its_files(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "deep").mkdir()
    write_jsonl(tmp_path / "deep" / "c.jsonl", [{"text": "third"}])
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "read.me").write_text("not data")
    assert [row["text"] for row in load_examples(str(tmp_path)).rows] == ["first", "second", "third"]


def test_blank_rows_are_left_out(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "d.jsonl", [{"text": " "}, {"text": "word"}])
    assert load_examples(str(path)).rows == [{"text": "word"}]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("d.jsonl", '{"text": "a"}\n{"text": \n', "d.jsonl, line 2: not JSON"),
        ("d.jsonl", '{"text": "a"}\n["b"]\n', "d.jsonl, line 2. Found: a JSON list"),
        ("d.jsonl", "", "Found: no rows"),
        ("d.jsonl", '{"text": ""}\n', "Found: 1 rows, all blank"),
        (
            "d.jsonl",
            '{"body": "a", "id": 1}\n',
            "Found: columns body, id. Needed: messages or prompt [+] completion or text",
        ),
        ("d.jsonl", '{"text": "a"}\n{"body": "b"}\n', "d.jsonl, line 2. Found: columns body. Needed: text"),
        ("d.jsonl", '{"text": 7}\n', "line 1: column 'text'. Found: int '7'. Needed: a string"),
        (
            "d.jsonl",
            '{"messages": "hello"}\n',
            "column 'messages'. Found: str 'hello'. Needed: a list of {role, content}",
        ),
        ("d.json", '{"text": "a"}\n{"text": "b"}\n', "name the file .jsonl"),
        ("d.parquet", "no parquet", "d.parquet. Found: .* Needed: a parquet file"),
        ("d.csv", "a,b", "suffix '.csv'. Needed: .jsonl, .json, .parquet or .txt"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path: Path, name: str, content: str, words: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=words):
        load_examples(str(path))


def test_missing_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no such file or directory"):
        load_examples(str(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match="no data file"):
        load_examples(str(tmp_path))
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
