"""The shipped text world: it loads offline, knows code, and no text is in two splits."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from orthotune.errors import DataError
from orthotune.worlds import text


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(text.MODEL, local_files_only=True)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(text.MODEL, local_files_only=True).eval()


def paragraphs(name: str) -> set[str]:
    """The long paragraphs of a split, whatever their indentation."""
    parts = (" ".join(part.split()) for doc in text.load_split(name) for part in doc["text"].split("\n\n"))
    return {part for part in parts if len(part) >= 50}


@torch.no_grad()
def loss(model, ids: torch.Tensor) -> float:
    return model(ids, labels=ids).loss.item()


def code_windows(tokenizer, count: int = 12, length: int = 256) -> torch.Tensor:
    """Windows from all over the held-out code."""
    texts = "\n".join(doc["text"] for doc in text.load_split("old_test"))
    ids = tokenizer(texts, verbose=False)["input_ids"]
    rows = torch.tensor(ids)[: len(ids) // length * length].view(-1, length)
    return rows[:: len(rows) // count][:count]


def test_weights_are_small_and_load_as_float32(model):
    assert (text.MODEL / "model.safetensors").stat().st_size <= 6_000_000
    assert model.dtype == torch.float32
    assert sum(p.numel() for p in model.parameters()) == 2_164_416


def test_special_tokens_agree(model, tokenizer):
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer.pad_token_id == model.config.pad_token_id == model.generation_config.pad_token_id
    assert tokenizer.eos_token_id == model.config.eos_token_id == model.generation_config.eos_token_id
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


@pytest.mark.parametrize(
    "sample",
    [
        "def f(x):\n\treturn  x  ** 2 # ok\r\n",
        " leading, trailing \n\n",
        "naïve façade: Ω≠ω, 漢字, 🙂👩‍👩‍👧, עברית , \u0000\u001f\u200b",
        bytes(range(256)).decode("latin-1"),
        "it 's . not , cleaned ?",
    ],
)
def test_tokenizer_gives_back_every_text(tokenizer, sample):
    ids = tokenizer(sample)["input_ids"]
    assert tokenizer.decode(ids) == sample
    assert tokenizer.eos_token_id not in ids


def test_model_knows_code(model, tokenizer):
    ids = code_windows(tokenizer)
    known = loss(model, ids)
    shuffled = ids[:, torch.randperm(ids.shape[1], generator=torch.Generator().manual_seed(0))]
    # Measured: 2.48 over the whole split. A uniform guess costs ln 2048 = 7.6.
    assert known < 2.7
    assert loss(model, shuffled) > known + 2


def test_card_tells_what_is_there(model):
    card = json.loads(text.CARD.read_text())
    assert set(card["splits"]) == set(text.SPLITS)
    assert {name: row["documents"] for name, row in card["splits"].items()} == {
        name: len(text.load_split(name)) for name in text.SPLITS
    }
    assert card["parameters"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("one", "other"), list(combinations(text.SPLITS, 2)))
def test_no_text_and_no_source_is_in_two_splits(one, other):
    for key in ("text", "source"):
        mine, theirs = ({doc[key] for doc in text.load_split(name)} for name in (one, other))
        assert not mine & theirs
    # Two files of code may share a phrase, such as a notice at their head; prose may share none with anything.
    if "new" in one + other:
        assert not paragraphs(one) & paragraphs(other)


def test_sources_are_relative():
    for name in text.SPLITS:
        for doc in text.load_split(name):
            assert doc["text"].strip()
            assert not doc["source"].startswith(("/", ".", "~")) and "\\" not in doc["source"]


def test_whole_data_is_small():
    assert sum(path.stat().st_size for path in (text.MODEL.parent / "data").iterdir()) < 2_000_000
    assert "Python Software Foundation" in (text.MODEL.parent / "NOTICE").read_text()


def test_unknown_split_names_the_nearest():
    with pytest.raises(DataError, match="Did you mean 'new_train'"):
        text.load_split("new_trian")
    with pytest.raises(DataError, match="one of new_train"):
        text.load_split("zzz")


def test_importing_the_world_imports_nothing_heavy():
    # The package's own __init__ may import torch, so a bare stand-in takes its place.
    check = (
        "import sys, types; package = types.ModuleType('orthotune'); package.__path__ = [sys.argv[1]];"
        "sys.modules['orthotune'] = package; import orthotune.worlds.text;"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    root = str(Path(text.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", check, root], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
