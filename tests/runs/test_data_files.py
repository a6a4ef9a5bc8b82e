from __future__ import annotations

from pathlib import Path

import pytest

from orthotune.errors import DataError
from orthotune.runs.data_files import read_rows
from tests.support.tiny_text import write_jsonl


def test_parquet_and_json(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["a", "b"], "n": [1, 2]}), tmp_path / "d.parquet")
    places = [f"{tmp_path / 'd.parquet'}, row {number}" for number in range(2)]
    assert read_rows(tmp_path / "d.parquet") == list(
        zip(places, [{"text": "a", "n": 1}, {"text": "b", "n": 2}], strict=True)
    )
    (tmp_path / "d.json").write_text('[{"text": "c"}]')
    assert read_rows(tmp_path / "d.json") == [(f"{tmp_path / 'd.json'}, row 0", {"text": "c"})]


def test_a_directory_is_all_its_files(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "deep").mkdir()
    write_jsonl(tmp_path / "deep" / "c.jsonl", [{"text": "third"}])
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "read.me").write_text("not data")
    assert [row["text"] for _, row in read_rows(tmp_path)] == ["first", "second", "third"]


def test_blank_lines_count_as_lines(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text('\n{"text": "a"}\n\n')
    assert read_rows(tmp_path / "d.jsonl") == [(f"{tmp_path / 'd.jsonl'}, line 2", {"text": "a"})]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("d.jsonl", b'{"text": "a"}\n{"text": \n', "d.jsonl, line 2: not JSON. Found: .* at column"),
        ("d.jsonl", b'{"text": "a"}\n["b"]\n', "d.jsonl, line 2. Found: a JSON list. Needed: an object such as"),
        ("d.jsonl", b'{"text": "\xff"}\n', "d.jsonl. Found: bytes that are not UTF-8 at position"),
        ("d.json", b'{"text": "a"}\n{"text": "b"}\n', "d.json, line 2: not JSON. .* name the file .jsonl"),
        ("d.json", b'{"text": "a"}', "d.json. Found: a JSON object. Needed: a list of objects"),
        ("d.parquet", b"no parquet", "d.parquet. Found: .* Needed: a parquet file"),
        ("d.csv", b"a,b", "suffix '.csv'. Needed: .jsonl, .json, .parquet or .txt"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_rows(tmp_path / name)


def test_a_directory_without_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data file. Needed: files ending in .jsonl"):
        read_rows(tmp_path)
