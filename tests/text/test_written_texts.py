"""Texts that the base writes: by the seed alone, at temperature 1, whatever adapter and settings lie around it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from orthotune import OFTConfig, get_peft_model
from orthotune.errors import DataError
from orthotune.text.written_texts import read_texts, write_texts
from tests.support.tiny_text import make_model, make_tokenizer


def _write(
    path: Path, seed: int = 0, moved: bool = False, begin: str | None = None, **settings: Any
) -> list[list[int]]:
    model = get_peft_model(make_model(), OFTConfig(oft_block_size=8, target_modules="all-linear")).train()
    for parameter in model.parameters() if moved else ():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    before, own = torch.get_rng_state(), model.get_base_model().generation_config
    own.update(**settings)
    tokenizer = make_tokenizer()
    if begin:
        tokenizer.bos_token = begin
    write_texts(model, tokenizer, path, max_length=12, seed=seed, count=20)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training and model.get_base_model().generation_config is own
    return [row.input_ids for row in read_texts(path)]


def test_the_base_writes_by_the_seed_alone(tmp_path: Path) -> None:
    rows = _write(tmp_path / "a")
    # More than are written at the same time, and no two batches alike.
    assert len(rows) == 20 and rows[:4] != rows[16:]
    assert _write(tmp_path / "b", moved=True) == rows
    assert _write(tmp_path / "c", seed=1) != rows


def test_cut_offs_that_the_model_comes_with_are_not_used(tmp_path: Path) -> None:
    rows = _write(tmp_path / "a")
    assert _write(tmp_path / "b", top_k=1, temperature=0.1, repetition_penalty=3.0, min_p=0.9) == rows


def test_a_text_goes_from_the_begin_token_to_the_end_token(tmp_path: Path) -> None:
    # 20 is one of the letters; this tokenizer's end token is 0, and it has no begin token of its own.
    letter = make_tokenizer().convert_ids_to_tokens(20)
    assert {row[0] for row in _write(tmp_path / "a")} == {0}
    assert {row[0] for row in _write(tmp_path / "b", begin=letter)} == {20}
    # With half of the tokens as further end tokens, most texts end early.
    rows = _write(tmp_path / "c", eos_token_id=list(range(128)))
    assert all(2 <= len(row) <= 12 and not any(token < 128 for token in row[1:-1]) for row in rows)
    assert sum(len(row) < 12 for row in rows) > 15


def test_the_file_can_be_read_by_people_and_as_data(tmp_path: Path) -> None:
    rows = _write(tmp_path / "a.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == [
        make_tokenizer().decode(row[1:], skip_special_tokens=True) for row in rows
    ]


@pytest.mark.parametrize("text", ['{"text": "no tokens"}', '{"input_ids": [1, "a"]}', '{"input_ids": 3}', "{", "[]"])
def test_a_damaged_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "a").write_text(text + "\n")
    with pytest.raises(DataError, match="Needed: the texts that this run began with"):
        read_texts(tmp_path / "a")
