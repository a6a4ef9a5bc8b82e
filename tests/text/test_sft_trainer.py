from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orthotune.errors import DataError
from orthotune.runs.quiet import quiet
from orthotune.text.data import Examples
from orthotune.text.sft_trainer import build_trainer, domain_rows, sft_config
from tests.support.tiny_text import make_model, make_tokenizer

TEXTS = ["one", "the second text is much longer than the length of one row", "three"]


def _trainer(folder: Path, examples: Examples, packing: str = "auto", **options: Any) -> Any:
    arguments = sft_config(
        folder,
        packing=packing,
        data_format=examples.format,
        schedule="cosine",
        bf16=False,
        max_length=16,
        per_device_train_batch_size=2,
        **options,
    )
    domains = {"new": Examples([{"text": text} for text in TEXTS], "text", "there")}
    with quiet():
        return build_trainer(make_model(), make_tokenizer(), arguments, examples, domains, adapter=None)


def test_running_text_is_used_to_its_last_token(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, Examples([{"text": text} for text in TEXTS], "text", "here"))
    tokenizer = make_tokenizer()
    whole = [token for text in TEXTS for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    rows = trainer.train_dataset["input_ids"]
    assert [token for row in rows for token in row] == whole
    assert all(len(row) == 16 for row in rows[:-1])
    # Measured rows overlap by the token that the next one starts from, and lose nothing either.
    measured = domain_rows(trainer)["new"]
    assert sum(len(row.input_ids) - 1 for row in measured) == len(whole) - len(TEXTS)
    assert max(len(row.input_ids) for row in measured) == 16


def test_only_completions_are_learned(tmp_path: Path) -> None:
    trainer = _trainer(tmp_path, Examples([{"prompt": "ab", "completion": "cd"}] * 3, "prompt-completion", "here"))
    assert len(trainer.train_dataset) == 3
    row = trainer.train_dataset[0]
    assert row["labels"] == [-100, -100, *row["input_ids"][2:]]


def test_examples_that_are_cut_to_nothing(tmp_path: Path) -> None:
    long = Examples([{"prompt": "a" * 40, "completion": "b"}] * 3, "prompt-completion", "here")
    with pytest.raises(DataError, match="no example with anything to learn in its first 16 tokens"):
        _trainer(tmp_path, long)


@pytest.mark.parametrize(("options", "steps"), [({"max_steps": 5}, 5), ({"num_train_epochs": 1.5}, 3)])
def test_planned_steps_are_those_that_are_made(tmp_path: Path, options: dict[str, Any], steps: int) -> None:
    rows = [{"prompt": "ab", "completion": "cd"}] * 7
    examples = Examples(rows, "prompt-completion", "here")
    # Seven rows, two a batch, two batches a step: two steps an epoch.
    trainer = _trainer(tmp_path, examples, gradient_accumulation_steps=2, save_steps=100, **options)
    assert trainer.planned_steps == steps
    trainer.train()
    assert trainer.state.global_step == steps


def test_nothing_is_reported_or_pushed(tmp_path: Path) -> None:
    arguments = sft_config(tmp_path, packing="none", data_format="text", schedule="linear", bf16=False)
    assert arguments.report_to == [] and not arguments.push_to_hub
