from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from orthotune.errors import RecipeError
from orthotune.text.causal_model import choose_dtype, load_model, load_tokenizer, without_dropout
from tests.support.tiny_text import make_tokenizer, save_model


def test_half_precision_files_are_loaded_in_the_wanted_dtype(tmp_path: Path) -> None:
    save_model(tmp_path, dtype="float16")
    for name in ("float32", "bfloat16"):
        dtypes = {parameter.dtype for parameter in load_model(str(tmp_path), choose_dtype(name)).parameters()}
        assert dtypes == {getattr(torch, name)}


def test_dropout_is_off() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=20)).train()
    ids = torch.arange(10)[None]
    assert not torch.equal(model(ids).logits, model(ids).logits)
    without_dropout(model)
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such directory, and the hub does not give it. Needed: .* Check the path"):
        load_model(str(tmp_path / "nowhere"), torch.float32)
    with pytest.raises(RecipeError, match="Found: .*Needed: a directory as written by save_pretrained"):
        load_model(str(tmp_path), torch.float32)
    weights = save_model(tmp_path / "cut") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(RecipeError, match="cut. Found: .*incomplete"):
        load_model(str(tmp_path / "cut"), torch.float32)
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="no end token"):
        load_tokenizer(str(tmp_path))


def test_padding_falls_back_to_the_end_token(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).pad_token == "<end>"
