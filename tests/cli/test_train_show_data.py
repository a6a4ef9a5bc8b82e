"""``orthotune train sft --show-data``: examples as tokens and counts, before anything is loaded, trained or written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from orthotune.cli import terminal
from tests.support.tiny_text import CHAT, make_tokenizer, write_jsonl


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tokenizer and no weights."""
    folder = tmp_path_factory.mktemp("chat")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT + "{% if add_generation_prompt %}<assistant>{% endif %}"
    tokenizer.save_pretrained(folder)
    return folder


def _talks(*answers: str) -> list[dict[str, Any]]:
    return [
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": answer}], "id": 1}
        for answer in answers
    ]


def test_examples_and_counts_without_weights(tmp_path: Path, chat: Path, call: Callable[..., Result]) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", _talks("a\x1b[2J", "b", "c" * 30, "d"))
    given = [f"model={chat}", f"data={data}", "loss_on=answers", "old_data=none", "max_length=30"]
    done = call("train", "sft", *given, "--show-data", "-o", tmp_path / "run")
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0] == f"{data}, line 1: 24 tokens, 5 of them learned"
    assert lines[1] == "<·u·s·e·r·>·h·i·<·a·s·s·i·s·t·a·n·t·>·⟦a·\\x1b·[·2·J⟧"
    assert "line 3: 30 tokens, 11 of them learned; 19 more are cut off" in lines[6]
    assert lines[-2] == f"form: sharegpt, 4 rows of {data}."
    assert lines[-1].startswith("data: 4 examples, 94 tokens, 18 of them learned. 1 lose what is beyond 30 tokens")
    assert "line 4" not in done.output and "\x1b" not in done.output and not (tmp_path / "run").exists()


def test_data_that_a_run_would_refuse_is_shown(tmp_path: Path, chat: Path, call: Callable[..., Result]) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", _talks("a", "b"))
    done = call("train", "sft", f"model={chat}", f"data={data}", "loss_on=answers", "max_length=10", "--show-data")
    assert done.exit_code == 0 and "A run is refused: data" in done.output, done.output


@pytest.mark.parametrize(
    ("variables", "is_terminal", "coloured"),
    [({}, True, True), ({"NO_COLOR": "1"}, True, False), ({"TERM": "dumb"}, True, False), ({}, False, False)],
)
def test_colours_are_for_terminals(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], is_terminal: bool, coloured: bool
) -> None:
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    class Output:
        encoding = "utf-8"

        def isatty(self) -> bool:
            return is_terminal

    monkeypatch.setattr("sys.stdout", Output())
    assert terminal.marks().before == ("\x1b[1;32m" if coloured else "⟦")
    Output.encoding = "ascii"
    assert terminal.marks().before == "[[" and terminal.printable("é") == "\\xe9"


@pytest.mark.parametrize(
    ("content", "words", "message"),
    [
        ('{"text": "a"}\n{"text": "b', [], "d.jsonl, line 2: not JSON"),
        (json.dumps({"messages": [{"role": "usr", "content": "a"}]}), [], "d.jsonl, line 1. Found: the role 'usr'"),
        (json.dumps({"text": "a"}), ["columns={text: body}"], "line 1: columns has text: body"),
        (json.dumps({"text": "a"}), ["system_prompt=b"], "which hold no dialogues"),
        (json.dumps({"text": "a"}), ["data=[{path: a.jsonl, weight: 0}]"], "weight=0. Write a number above 0"),
    ],
)
def test_wrong_data_is_one_line(
    tmp_path: Path, chat: Path, call: Callable[..., Result], content: str, words: list[str], message: str
) -> None:
    (tmp_path / "d.jsonl").write_text(content)
    done = call("train", "sft", f"model={chat}", f"data={tmp_path / 'd.jsonl'}", *words, "--show-data")
    assert done.exit_code == 2 and message in done.output and "Traceback" not in done.output, done.output
    assert len(done.output.splitlines()) <= 2
