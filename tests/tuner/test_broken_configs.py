"""An adapter folder whose config is no config, by every way in: an error with the file's name."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftConfig, PeftMixedModel, PeftModel
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from orthotune import OFTConfig, get_peft_model, register, unregister
from orthotune.errors import AdapterFileError

WHOLE = {"peft_type": "OFT", "oft_block_size": 4, "target_modules": ["0"]}
BROKEN = {
    "empty": b"", "white": b" \n", "cut": json.dumps(WHOLE).encode()[:20], "bytes": b"\xff\xfe\x00{",
    "list": b"[]", "number": b"3", "text": b'"OFT"', "null": b"null", "deep": b"[" * 100_000, "no type": b"{}",
    "fields, no type": json.dumps({k: v for k, v in WHOLE.items() if k != "peft_type"}).encode(),
    **{f"type {kind!r}": json.dumps({**WHOLE, "peft_type": kind}).encode()
       for kind in (None, 3, [], {}, "", "oft", "NO_SUCH", True)},
}  # fmt: skip


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8))


def llama():
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1,
    ))  # fmt: skip


WAYS = {
    "PeftModel.from_pretrained": lambda folder: PeftModel.from_pretrained(net(), folder),
    "PeftConfig.from_pretrained": PeftConfig.from_pretrained,
    "OFTConfig.from_pretrained": OFTConfig.from_pretrained,
    "PeftModel.load_adapter": lambda folder: get_peft_model(net(), OFTConfig(**{
        k: v for k, v in WHOLE.items() if k != "peft_type"})).load_adapter(folder, "other"),
    "transformers' load_adapter": lambda folder: llama().load_adapter(folder),
    "PeftMixedModel.from_pretrained": lambda folder: PeftMixedModel.from_pretrained(net(), folder),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    config = OFTConfig(oft_block_size=4, target_modules=["0"])
    get_peft_model(net(), config).save_pretrained(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_config_is_worded(folder, way, what):
    (folder / "adapter_config.json").write_bytes(BROKEN[what])
    with pytest.raises(AdapterFileError, match=r"adapter_config\.json") as caught:
        WAYS[way](str(folder))
    assert "Found: " in str(caught.value)


def test_what_other_readers_of_json_get_is_left_alone(tmp_path):
    (tmp_path / "other.json").write_text('{"runtime_config": 1, "a": 2}')
    with pytest.warns(UserWarning, match="runtime_config"):
        assert PeftConfig.from_json_file(str(tmp_path / "other.json")) == {"a": 2}


def test_unregister_gives_pefts_own_reading_back(folder):
    (folder / "adapter_config.json").write_text("")
    unregister()
    try:
        with pytest.raises(json.JSONDecodeError):
            PeftConfig.from_pretrained(str(folder))
    finally:
        register()
    with pytest.raises(AdapterFileError):
        PeftConfig.from_pretrained(str(folder))
