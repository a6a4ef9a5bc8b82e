from __future__ import annotations

from pathlib import Path

import pytest

from orthotune.errors import DataError
from orthotune.runs.data_files import matching_files, missing_path, read_rows
from orthotune.runs.hub_data import load_split
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
        ("d.xls", b"a,b", "suffix '.xls'. Needed: .jsonl, .json, .parquet, .csv, .tsv or .txt"),
        ("d.jsonl", b'{"text": "a"}\n{"text": "b', "d.jsonl, line 2: not JSON. .* the text ends in the middle"),
        ("d.json", b'[{"text": "a"},\n {"text"', "d.json, line 2: not JSON. .* the text ends in the middle"),
        ("d.csv", b"", "d.csv, line 1. Found: no names. Needed: the names of the columns"),
        ("d.csv", b"a,a\n1,2\n", "d.csv, line 1. Found: the column 'a' twice"),
        ("d.csv", b'a,b\n"1\n2",3\n4;5\n', "d.csv, line 4. Found: 1 values separated by a comma. Needed: 2, as line 1"),
        ("d.csv", b"a;b\n1;2\n3;4;5\n", "line 3. Found: 3 values separated by a semicolon.*quotation marks"),
        ("d.csv", b'a,b\n1,"2\n', "d.csv, line 2. Found: .* Needed: values whose quotation marks are closed"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_rows(tmp_path / name)


def test_a_directory_without_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data file. Needed: files ending in .jsonl"):
        read_rows(tmp_path)


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_tables_whatever_separates_their_columns(tmp_path: Path, delimiter: str) -> None:
    lines = [["prompt", "completion"], ['"a, b; c|d\n"', "e" * 200_000], ["f", ""]]
    path = tmp_path / ("d.tsv" if delimiter == "\t" else "d.csv")
    path.write_text("".join(delimiter.join(line) + "\n" for line in lines), encoding="utf-8-sig")
    first, second = read_rows(path)
    assert first == (f"{path}, line 2", {"prompt": "a, b; c|d\n", "completion": "e" * 200_000})
    assert second == (f"{path}, line 4", {"prompt": "f", "completion": ""})


def test_a_table_beside_other_data_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "names.csv").write_text("name\na.txt\n")
    assert len(read_rows(tmp_path)) == 1
    (tmp_path / "a.txt").write_text("first")
    assert [row for _, row in read_rows(tmp_path)] == [{"text": "first"}]


def test_patterns_and_near_names(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.txt", "a.txt", "deep/c.txt"):
        (tmp_path / name).write_text(name)
    assert matching_files(str(tmp_path / "a.txt")) is None
    assert [file.name for file in matching_files(str(tmp_path / "**" / "*.txt")) or []] == ["a.txt", "b.txt", "c.txt"]
    with pytest.raises(DataError, match="no file that this pattern means"):
        matching_files(str(tmp_path / "*.jsonl"))
    assert "Did you mean" in str(missing_path(str(tmp_path / "deeq"))) and "deep'" in str(
        missing_path(str(tmp_path / "deeq"))
    )


def test_a_config_and_a_split_of_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a card is to ``datasets`` what a data set of the hub is."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path.parent / "cache")
    for config in ("french", "german"):
        write_jsonl(tmp_path / f"{config}.jsonl", [{"text": config}])
    configs = [
        f"- {{config_name: {name}, data_files: [{{split: test, path: {name}.jsonl}}]}}" for name in ("french", "german")
    ]
    (tmp_path / "README.md").write_text("\n".join(["---", "configs:", *configs, "---", ""]))
    assert list(load_split(f"{tmp_path}:german:test")) == [{"text": "german"}]
    with pytest.raises(DataError, match=f"Did you mean {tmp_path}:german:SPLIT"):
        load_split(f"{tmp_path}:gremlan:test")
    with pytest.raises(DataError, match=f"Name one of its configs: {tmp_path}:CONFIG:SPLIT"):
        load_split(f"{tmp_path}:test")
