"""Dialogues keep what they hold: who speaks, tools, calls of tools; and the answers alone may be learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orthotune.errors import DataError
from orthotune.runs.quiet import quiet
from orthotune.text.answers import Dialogue, answer_rows
from orthotune.text.data import Examples, load_examples
from orthotune.text.rendered_rows import rendered_rows
from orthotune.text.sft_trainer import build_trainer, domain_rows, sft_config
from tests.support.tiny_text import make_model, make_tokenizer, write_jsonl
from tests.support.trl_tables import table_of

PLAIN = (
    "{% for t in tools or [] %}[{{ t['function']['name'] }}]{% endfor %}"
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] or '' }}"
    "{% for c in m['tool_calls'] or [] %}{{ c['function'] | tojson }}{% endfor %};{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
#: Renders the last turn in another way than earlier ones, as templates do that show the last reasoning alone.
LAST_DIFFERS = PLAIN.replace("{% for m in messages %}", "{% for m in messages %}{% if loop.last %}!{% endif %}")


def _tokenizer(template: str = PLAIN) -> Any:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def _call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"function": {"name": name, "arguments": arguments}}]}


TOOLS = [{"type": "function", "function": {"name": "f"}}]
ROWS = [
    {"messages": [{"role": "user", "content": "hi"}, _call("f", x=1)], "tools": TOOLS},
    {"messages": [{"role": "user", "content": "ho"}, _call("g", y="z")]},
]


def test_tools_and_calls_reach_the_template_as_they_are(tmp_path: Path) -> None:
    examples = load_examples(str(write_jsonl(tmp_path / "d.jsonl", ROWS)))
    assert "tools" not in examples.unused
    for row, given in zip(table_of(examples), ROWS, strict=True):
        assert row["messages"] == given["messages"]
        assert (json.loads(row["tools"]) if row["tools"] else None) == given.get("tools")
    tokenizer = _tokenizer()
    texts = [tokenizer.decode(row.input_ids) for row in rendered_rows(tokenizer, examples, 100)]
    assert texts == [
        '[f]<user>hi;<assistant>{"name": "f", "arguments": {"x": 1}};',
        '<user>ho;<assistant>{"name": "g", "arguments": {"y": "z"}};',
    ]
    trainer = _trainer(tmp_path, examples, tokenizer)
    assert sorted(tokenizer.decode(row["input_ids"]) for row in trainer.train_dataset) == sorted(texts)


def test_a_message_needs_content_or_calls(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a list of {role, content}"):
        load_examples(str(write_jsonl(tmp_path / "d.jsonl", [{"messages": [{"role": "assistant"}]}])))


def _trainer(folder: Path, examples: Examples, tokenizer: Any, **options: Any) -> Any:
    arguments = sft_config(
        folder, packing="none", data_format=examples.format, schedule="cosine", bf16=False, max_length=100
    )
    with quiet():
        return build_trainer(make_model(), tokenizer, arguments, examples, {"new": examples}, None, **options)


TALK = {
    "messages": [
        {"role": role, "content": text}
        for role, text in [
            ("system", "be kind"),
            ("user", "hi"),
            ("assistant", "ho"),
            ("user", "a"),
            ("assistant", "b"),
        ]
    ]
}


@pytest.mark.parametrize("answers_only", [False, True])
def test_answers_alone_are_learned_and_measured(tmp_path: Path, answers_only: bool) -> None:
    tokenizer = _tokenizer()
    trainer = _trainer(tmp_path, Examples([TALK] * 2, "messages", "here"), tokenizer, answers_only=answers_only)
    learned = "ho;b;" if answers_only else "<system>be kind;<user>hi;<assistant>ho;<user>a;<assistant>b;"
    rows = [trainer.train_dataset[0]["labels"], domain_rows(trainer)["new"][0].labels]
    assert [tokenizer.decode([label for label in labels if label != -100]) for labels in rows] == [learned] * 2
    assert trainer.row_counts["train"].trained_tokens == 2 * len(learned)


def test_a_template_that_rewrites_questions_is_refused() -> None:
    with pytest.raises(DataError, match=r"a.jsonl, line 3, message 3 .*writes the messages before in another way"):
        answer_rows(Dialogue(_tokenizer(LAST_DIFFERS), TALK["messages"][:3], place="a.jsonl, line 3"))


@pytest.mark.parametrize(
    ("row", "text"),
    [({"text": "ab"}, "ab<end>"), ({"prompt": "a", "completion": "b"}, "ab<end>"), (TALK, None)],
)
def test_rows_are_measured_as_they_are_learned(row: dict[str, Any], text: str | None) -> None:
    tokenizer = _tokenizer()
    examples = Examples([row], "messages" if text is None else "text", "here")
    expected = text or tokenizer.apply_chat_template(TALK["messages"], tokenize=False)
    assert [tokenizer.decode(one.input_ids) for one in rendered_rows(tokenizer, examples, 100)] == [expected]
