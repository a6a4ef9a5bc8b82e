"""JSON that is not there or not JSON is named by file and line; what is written is read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orthotune.errors import AdapterFileError, DataError, OutputError
from orthotune.files.json_file import (
    complete_json_lines,
    json_line,
    json_object,
    read_json,
    read_json_lines,
    read_json_list,
    write_json,
)

FAULTS: dict[str, tuple[bytes, str]] = {
    "empty": (b" \n", r"a\.json. Found: an empty file. Needed: a JSON object"),
    "cut off": (b'{"a": 1,\n "b": [', r"a\.json, line 2: not JSON. Found: .* at column"),
    "not text": (b'{"a": "\xff"}', r"a\.json. Found: bytes that are not UTF-8 at position 7"),
    "a list": (b"[1]", r"a\.json. Found: a JSON list. Needed: a JSON object"),
    "a number": (b"1.5", r"a\.json. Found: a JSON number"),
    "null": (b"null", r"a\.json. Found: a JSON null"),
    "too deep": (b"[" * 100_000, r"a\.json. Found: JSON that is nested too deep"),
    "too long a number": (b'{"a": ' + b"1" * 100_000 + b"}", r"a\.json. Found: .*digits"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_name_the_file_and_the_line(tmp_path: Path, fault: str) -> None:
    content, words = FAULTS[fault]
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_json(tmp_path / "a.json")


def test_messages_say_what_the_caller_knows(tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError) as caught:
        read_json(tmp_path / "a.json", named="manifest", error=AdapterFileError, needed="names", do="Write it again")
    assert str(caught.value) == f"manifest {tmp_path / 'a.json'}. Found: no such file. Needed: names. Write it again."
    with pytest.raises(DataError, match="Found: a folder"):
        read_json(tmp_path)
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(DataError, match="Found: a JSON object. Needed: a JSON list"):
        read_json_list(tmp_path / "a.json")


def test_lines_are_counted_and_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\n{"a": 1}\n\n{"a": 2}\n')
    assert list(read_json_lines(path)) == [(2, {"a": 1}), (4, {"a": 2})]
    path.write_text('{"a": 1}\n[2]\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line 2. Found: a JSON list. Needed: a JSON object in each line"):
        list(read_json_lines(path))


def test_a_log_that_was_cut_off_is_read_up_to_there(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json_line({"step": 1}) + json_line({"step": 2}) + '{"step": 3, "lo')
    assert complete_json_lines(path) == [{"step": 1}, {"step": 2}]
    assert complete_json_lines(tmp_path / "none") == []


@pytest.mark.parametrize("content", [{"a": [1, 2.5, "ä\n"], "b": None}, {}, {"deep": {"c": True}}])
def test_what_is_written_is_read_back(tmp_path: Path, content: dict[str, Any]) -> None:
    for ascii_only in (True, False):
        write_json(tmp_path / "a.json", content, ascii_only=ascii_only)
        assert read_json(tmp_path / "a.json") == content
        assert (tmp_path / "a.json").read_bytes().isascii() or not ascii_only


def test_numbers_that_json_does_not_have(tmp_path: Path) -> None:
    numbers = {"loss": [float("nan"), float("inf"), 1.5]}
    write_json(tmp_path / "a.json", numbers)
    assert read_json(tmp_path / "a.json") == {"loss": [None, None, 1.5]}
    write_json(tmp_path / "a.json", {"eps": float("inf")}, nan_as_null=False)  # a config of another program
    assert read_json(tmp_path / "a.json") == {"eps": float("inf")}


def test_what_is_no_json_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert read_json(tmp_path / "a.json") == {"a": 1}
    with pytest.raises(OutputError, match=r"a\.json"):
        write_json(tmp_path / "a.json" / "b.json", {})


def test_an_object_in_a_text() -> None:
    for text in ("", "[1]", "[" * 100_000):
        with pytest.raises(ValueError):
            json_object(text)
