"""``orthotune evaluate answers``: a base, an adapter on it, a run directory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from orthotune import OFTConfig, get_peft_model
from tests.support.tiny_text import CHAT, make_model, make_tokenizer, write_jsonl

QUESTIONS = [
    {"question": "Say a.", "kind": "facts", "answers": ["a"]},
    {"question": "What is 1 + 1?", "kind": "arithmetic", "answers": ["2"]},
    {"question": "Repeat: on", "kind": "instructions", "answers": ["on", "On"]},
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``chat`` and ``plain``, two bases; ``oft`` and ``lora``, adapters of the first; ``questions.jsonl``."""
    from peft import LoraConfig

    home = tmp_path_factory.mktemp("asked")
    for name, template in (("chat", CHAT), ("plain", None)):
        tokenizer = make_tokenizer()
        tokenizer.chat_template = template
        make_model().save_pretrained(home / name)
        tokenizer.save_pretrained(home / name)
    options: dict[str, Any] = {"target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
    for name, config in (("oft", OFTConfig(oft_block_size=8, **options)), ("lora", LoraConfig(r=2, **options))):
        tuned = get_peft_model(make_model(), config)
        torch.manual_seed(1)
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.5)
        tuned.save_pretrained(home / name)
    write_jsonl(home / "questions.jsonl", QUESTIONS)
    return home


def _asked(call: Callable, home: Path, *words: Any) -> dict[str, Any]:
    done = call("evaluate", "answers", *words, "--questions", home / "questions.jsonl", "--json")
    assert done.exit_code == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("name", ["chat", "plain"])
def test_a_base_is_asked(call: Callable, home: Path, name: str) -> None:
    found = _asked(call, home, home / name)
    assert found["chat_template"] is (name == "chat") and found["trained"] is None and "after" not in found
    assert list(found["before"]) == ["facts", "arithmetic", "instructions", "all"]
    assert found["before"]["all"]["questions"] == len(found["replies"]) == 3 and found["before"]["all"]["nats"] > 0
    done = call("evaluate", "answers", home / name, "--questions", home / "questions.jsonl")
    assert done.exit_code == 0, done.stderr
    assert "0 of 3" in done.stdout and ("no chat template" in done.stdout) is (name == "plain")


@pytest.mark.parametrize("name", ["oft", "lora"])
def test_an_adapter_is_compared_with_its_base(call: Callable, home: Path, name: str) -> None:
    base = _asked(call, home, home / "chat")
    found = _asked(call, home, home / "chat", "--adapter", home / name)
    assert found["before"] == base["before"] and found["trained"] == str(home / name)
    assert found["after"]["all"]["nats"] != pytest.approx(found["before"]["all"]["nats"], rel=1e-4)
    assert set(found["flips"]) == {"right_to_wrong", "wrong_to_right", "p"}
    assert {*found["replies"][0]} == {"question", "kind", "answers", "before", "after"}
    off = _asked(call, home, home / "chat", "--adapter", home / name, "--strength", 0)
    assert off["after"]["all"]["nats"] == pytest.approx(off["before"]["all"]["nats"], rel=1e-5)
    half = _asked(call, home, home / "chat", "--adapter", home / name, "--strength", 0.5)
    assert half["after"]["all"]["nats"] not in (found["after"]["all"]["nats"], off["after"]["all"]["nats"])


def test_a_run_directory_brings_its_base_and_its_result(call: Callable, home: Path, tmp_path: Path) -> None:
    record = {"recipe": "sft", "method": "oft", "settings": {"model": str(home / "chat")}}
    (tmp_path / "oft").mkdir()
    (tmp_path / "oft" / "run.json").write_text(json.dumps(record))
    (tmp_path / "oft" / "adapter").symlink_to(home / "oft")
    found = _asked(call, home, tmp_path / "oft")
    alone = _asked(call, home, home / "chat", "--adapter", home / "oft")
    assert (found["base"], found["after"]) == (str(home / "chat"), alone["after"])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "run.json").write_text(json.dumps({**record, "method": "full"}))
    (tmp_path / "full" / "model").symlink_to(home / "plain")
    full = _asked(call, home, tmp_path / "full", "--strength", 0.5)
    # The weights of the two bases are the same.
    assert full["after"] == full["before"] == alone["before"] and full["flips"]["p"] == 1
    shown = call("evaluate", "answers", tmp_path / "oft", "--questions", home / "questions.jsonl")
    assert "trained" in shown.stdout and "right -> wrong" in shown.stdout


def test_what_cannot_be_asked_is_reported(call: Callable, home: Path, tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    (tmp_path / "image" / "run.json").write_text(json.dumps({"recipe": "subject", "settings": {"model": "m"}}))
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "run.json").write_text(json.dumps({"recipe": "sft", "settings": {"model": "m"}}))
    write_jsonl(tmp_path / "bad.jsonl", [QUESTIONS[0], {"question": "?", "kind": "sums", "answers": ["1"]}])
    cases: list[tuple[tuple[Any, ...], str]] = [
        ((home / "oft",), "Found: an adapter. Needed: a base or a run directory. Run orthotune evaluate answers BASE"),
        ((tmp_path / "image",), "Found: no finished run of a language model, recipe 'subject'"),
        ((tmp_path / "cut",), "Found: no finished run of a language model, recipe 'sft'"),
        ((tmp_path / "cut", "--adapter", home / "oft"), "a run directory, which has an adapter of its own"),
        ((tmp_path / "none",), "Needed: a directory as written by save_pretrained"),
        ((home / "chat", "--questions", tmp_path / "bad.jsonl"), "bad.jsonl, line 2. Found: kind 'sums'"),
        ((home / "chat", "--questions", tmp_path / "no.jsonl"), "no such file"),
        ((home / "chat", "--strength", 0.5), "--strength needs an adapter"),
        ((home / "chat", "--adapter", tmp_path / "none"), "none"),
    ]
    for words, message in cases:
        done = call("evaluate", "answers", *words)
        assert done.exit_code == 2 and message in " ".join(done.stderr.split()).replace("│ ", ""), (words, done.stderr)
        assert "Traceback" not in done.stderr
