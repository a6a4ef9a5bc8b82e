"""The forms of rows: what each becomes, from each kind of file, and what is said of rows of no form."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from orthotune.errors import DataError
from orthotune.runs.data_files import Row
from orthotune.text.data import Examples, Reading, examples_of, load_examples
from orthotune.text.row_forms import FORMS
from tests.support.tiny_text import write_jsonl

Q, A = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
TOOLS = [{"type": "function", "function": {"name": "f"}}]
CALL = {"role": "assistant", "content": "", "tool_calls": [
    {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]}  # fmt: skip
#: A row of each form, the form, and what becomes of the row.
ROWS: list[tuple[Row, str, Row]] = [
    ({"text": "a"}, "text", {"text": "a"}),
    ({"prompt": "Q", "completion": "A"}, "prompt-completion", {"prompt": "Q", "completion": "A"}),
    ({"prompt": '{"a": 1}', "completion": "[]"}, "prompt-completion", {"prompt": '{"a": 1}', "completion": "[]"}),
    ({"prompt": [Q], "completion": [A]}, "prompt-completion", {"prompt": [Q], "completion": [A]}),
    ({"messages": [Q, A]}, "messages", {"messages": [Q, A]}),
    ({"messages": [Q, CALL], "tools": TOOLS}, "messages", {"messages": [Q, CALL], "tools": json.dumps(TOOLS)}),
    ({"messages": [Q | {"tool_calls": None}, CALL | {"content": None, "tool_calls": [
        {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]}]}, "messages",
     {"messages": [Q, CALL | {"content": None}]}),
    ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "system": "S"}, "sharegpt",
     {"messages": [{"role": "system", "content": "S"}, Q, A]}),
    ({"conversations": [Q, A]}, "sharegpt", {"messages": [Q, A]}),
    ({"conversations": [
        {"from": "human", "value": "Q"}, {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"from": "observation", "value": "R"}, {"from": "gpt", "value": "A"}], "tools": json.dumps(TOOLS)}, "sharegpt",
     {"messages": [Q, CALL, {"role": "tool", "content": "R"}, A], "tools": json.dumps(TOOLS)}),
    ({"instruction": "Q", "input": "", "output": "A"}, "alpaca",
     {"prompt": [Q], "completion": [A], "instruction": "Q"}),
    ({"instruction": "Q", "input": "I", "output": "A", "history": [["Q", "A"]], "system": "S"}, "alpaca",
     {"prompt": [{"role": "system", "content": "S"}, Q, A, {"role": "user", "content": "Q\n\nI"}], "completion": [A]}),
]  # fmt: skip


@pytest.mark.parametrize(("row", "form", "expected"), ROWS)
def test_each_form_is_recognized_and_read(row: Row, form: str, expected: Row) -> None:
    examples = examples_of([("a place", row | {"id": 1, "nothing": None})], "a set")
    assert examples.rows == [expected]
    assert examples.notes == (f"form: {form}, 1 row of a set.",) and examples.format == FORMS[form].format
    assert (examples.unused, examples.places) == (("id",), ("a place",))


def _write(path: Path, rows: list[Row]) -> str:
    """Rows as a file of the kind that the name says; a table has lists as JSON."""
    flat = [{k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()} for row in rows]
    if path.suffix == ".jsonl":
        write_jsonl(path, rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="", encoding="utf-8") as opened:
            table = csv.DictWriter(opened, list(flat[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows(flat)
    return str(path)


@pytest.mark.parametrize("name", ["d.jsonl", "d.json", "d.parquet", "d.csv", "d.tsv"])
def test_each_form_from_each_kind_of_file(tmp_path: Path, name: str) -> None:
    for number in (0, 1, 3, 4, 7, 10):
        row, form, expected = ROWS[number]
        examples = load_examples(_write(tmp_path / name, [row, row]))
        assert examples.rows == [expected] * 2 and examples.notes[0].startswith(f"form: {form}, 2 rows of "), form


def test_several_files_by_a_pattern(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.csv"):
        _write(tmp_path / name, [{"instruction": name, "output": "A"}])
    examples = load_examples(str(tmp_path / "*.*"))
    assert [row["instruction"] for row in examples.rows] == ["a.csv", "b.jsonl"]
    assert examples.place(1) == f"{tmp_path / 'b.jsonl'}, line 1"


def test_columns_and_roles_have_other_names() -> None:
    rows = [("line 1", {"question": "Q", "answer": "A", "text": "Q A"})]
    assert examples_of(rows, "d", reading=Reading(columns={"prompt": "question", "completion": "answer"})).rows == [
        {"prompt": "Q", "completion": "A"}
    ]
    talk = [("line 1", {"talk": [{"from": "customer", "value": "Q"}, {"from": "gpt", "value": "A"}]})]
    reading = Reading(columns={"conversations": "talk"}, roles={"customer": "user"})
    assert examples_of(talk, "d", reading=reading).rows == [{"messages": [Q, A]}]


@pytest.mark.parametrize(("asks", "answers"), [("user", "model"), ("human", "gpt")])
def test_other_names_of_speakers_are_roles_of_messages_too(asks: str, answers: str) -> None:
    messages = [{"role": asks, "content": Q["content"]}, {"role": answers, "content": A["content"]}]
    assert examples_of([("line 1", {"messages": messages})], "d").rows == [{"messages": [Q, A]}]


def test_a_form_may_be_forced_and_others_are_mentioned() -> None:
    row = {"instruction": "Q", "output": "A", "text": "Q A"}
    first = examples_of([("line 1", row)], "d")
    assert (
        first.format == "text" and "also have the columns of alpaca: data_format=alpaca reads those" in first.notes[0]
    )
    assert examples_of([("line 1", row)], "d", "alpaca").rows[0]["prompt"] == [Q]


def test_a_system_prompt_is_put_before_dialogues_without_one() -> None:
    own = {"role": "system", "content": "own"}
    reading = Reading(system_prompt="S")

    def read(row: Row) -> Row:
        return examples_of([("line 1", row)], "d", reading=reading).rows[0]

    system = {"role": "system", "content": "S"}
    assert read({"messages": [Q, A]}) == {"messages": [system, Q, A]}
    assert read({"messages": [own, Q, A]}) == {"messages": [own, Q, A]}
    assert read({"prompt": [Q], "completion": [A]})["prompt"] == [system, Q]
    assert read({"instruction": "Q", "output": "A"}) == {"prompt": [system, Q], "completion": [A]}
    with pytest.raises(
        DataError, match="system_prompt for data 'd'. Found: rows of the form text, which hold no dialog"
    ):
        read({"text": "a"})


def test_places_follow_the_rows_that_are_held_out() -> None:
    examples = Examples([{"text": "a"}, {"text": "b"}], "text", "d", places=("line 1", "line 5"))
    assert (
        examples.chosen([1]).place(0) == "line 5" and Examples([{"text": "a"}], "text", "d").place(0) == "d, example 1"
    )


TALK = [{"from": "human", "value": "Q"}]
FAULTS: list[tuple[list[Any], Reading, str]] = [
    (
        [{"text": "a"}],
        Reading("alpaca"),
        "line 1. .*read as alpaca.. Leave data_format out, or .*columns={instruction: N",
    ),
    (
        [{"text": "a"}, {"messages": [Q]}],
        Reading(),
        "line 2. Found: columns messages, which is the form messages. "
        "Needed: text .the data is read as text.. Keep rows of each form in a file of their own",
    ),
    (
        [{"instruction": "Q", "output": "A"}, {"instruction": "Q"}],
        Reading(),
        "line 2. Found: columns instruction. Needed",
    ),
    (
        [{"question": "a", "answer": "b"}],
        Reading(),
        "columns answer, question. Needed: messages or prompt . completion or"
        " text or conversations or instruction . output. .*columns={text: question}",
    ),
    (
        [{"question": "a"}],
        Reading(columns={"prompt": "qestion"}),
        "line 1: columns has prompt: qestion.*mean 'question'",
    ),
    (
        [{"answer": "a"}],
        Reading(columns={"answer": "text"}),
        "line 1: columns has answer: text.*columns={text: answer}",
    ),
    (
        [{"conversations": [*TALK, {"from": "gtp", "value": "A"}]}],
        Reading(),
        "line 1, message 2. Found: from: 'gtp'. Needed: one of system, human, .*Did you mean 'gpt'",
    ),
    (
        [{"conversations": [{"from": "Bob", "value": "Q"}]}],
        Reading(),
        "message 1. Found: from: 'Bob'.*roles={Bob: user}",
    ),
    ([{"conversations": [{"from": "gpt"}]}], Reading(), "line 1: column 'conversations'. .*a list of {from, value}"),
    (
        [{"conversations": [{"from": "gpt", "value": 3}]}],
        Reading(),
        "line 1, message 1: column 'value'. Found: int '3'",
    ),
    (
        [{"conversations": [{"from": "function_call", "value": "f(1)"}]}],
        Reading(),
        "message 1: column 'value'.*a call of",
    ),
    (
        [{"instruction": "Q", "output": "A", "history": ["Q"]}],
        Reading(),
        "column 'history'.*list of .instruction, output.",
    ),
    ([{"instruction": "Q", "output": 3}], Reading(), "line 1: column 'output'. Found: int '3'. Needed: a string"),
    ([{"prompt": "Q", "completion": [A]}], Reading(), "a string beside a list of messages"),
    ([{"messages": "[{"}], Reading(), "column 'messages'. Found: str .* Needed: a list of {role, content}"),
    ([{"messages": []}], Reading(), "1 rows, all blank"),
    (
        [{"messages": [Q], "tools": "[{]"}],
        Reading(),
        "line 1: column 'tools'. Found: str .*a list of tools, or its JSON",
    ),
    ([{"messages": [Q], "tools": {"f": 1}}], Reading(), "line 1: column 'tools'. Found: dict"),
]


@pytest.mark.parametrize(("rows", "reading", "words"), FAULTS)
def test_what_is_wrong_is_named_with_its_place(rows: list[Row], reading: Reading, words: str) -> None:
    with pytest.raises(DataError, match=words):
        examples_of([(f"d.jsonl, line {n}", row) for n, row in enumerate(rows, 1)], "d.jsonl", reading=reading)


def test_empty_dialogues_are_skipped_and_named() -> None:
    rows = [{"messages": [Q, A]}, {"messages": []}, {"messages": [Q]}]
    examples = examples_of([(f"line {n}", row) for n, row in enumerate(rows, 1)], "d")
    assert (len(examples.rows), examples.blank) == (2, 1) and examples.notes[0].endswith("Blank: line 2.")


def test_a_path_that_does_not_exist_is_named_with_near_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "chats.jsonl").write_text('{"text": "a"}')
    with pytest.raises(DataError, match=r"no such file or directory. Did you mean '.*chats.jsonl'"):
        load_examples(str(tmp_path / "chat.jsonl"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match="the hub answers: .* Did you mean the file 'chats.jsonl'"):
        load_examples("chats")
