"""Our config is one of PEFT's OFT configs, and PEFT's own OFT layer never runs with it."""

from __future__ import annotations

import copy
import json
from dataclasses import fields

import peft
import pytest
import torch
from peft import LoraConfig, PeftMixedModel
from torch import nn

from orthotune import OFTConfig, get_peft_model
from orthotune.errors import ConfigError
from orthotune.tuner.config import DEFAULT_BLOCK_SIZE


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))


def test_our_config_is_one_of_pefts():
    config = OFTConfig(oft_block_size=4)
    assert isinstance(config, peft.OFTConfig) and isinstance(config, peft.PeftConfig)
    assert OFTConfig.from_peft(config) is config
    assert {f.name for f in fields(peft.OFTConfig)} <= {f.name for f in fields(OFTConfig)}


def test_our_defaults_are_ours():
    config = OFTConfig()
    assert (config.r, config.oft_block_size, config.use_cayley_neumann) == (0, DEFAULT_BLOCK_SIZE, False)
    assert OFTConfig(r=2).oft_block_size == 0
    assert OFTConfig.from_peft(peft.OFTConfig()).use_cayley_neumann


def test_a_saved_config_is_what_it_was(tmp_path):
    """The bytes that 0.1 wrote; a changed one must be meant."""
    OFTConfig(oft_block_size=4, target_modules=["b", "a"], peft_version="0.21.2").save_pretrained(str(tmp_path))
    text = (tmp_path / "adapter_config.json").read_text()
    assert list(json.loads(text)) == sorted(json.loads(text)) == [
        "auto_mapping", "base_model_name_or_path", "bias", "block_share", "coft", "eps", "exclude_modules",
        "fan_in_fan_out", "inference_mode", "init_weights", "layers_pattern", "layers_to_transform", "module_dropout",
        "modules_to_save", "num_cayley_neumann_terms", "oft_block_size", "peft_type", "peft_version", "r", "revision",
        "target_modules", "task_type", "use_cayley_neumann",
    ]  # fmt: skip


def test_what_is_known_of_a_file_belongs_to_one_config_and_is_never_saved(tmp_path):
    OFTConfig(oft_block_size=4, target_modules=["0"]).save_pretrained(str(tmp_path))
    text = (tmp_path / "adapter_config.json").read_text()
    read = OFTConfig.from_pretrained(str(tmp_path))
    made = OFTConfig(oft_block_size=4, target_modules=["0"])
    assert read.load_context.saved and not made.load_context.saved and not hasattr(OFTConfig, "load_context")
    assert "load_context" not in str(read) and "load_context" not in {f.name for f in fields(OFTConfig)}
    assert copy.deepcopy(read).load_context == copy.copy(read).load_context == read.load_context
    read.save_pretrained(str(tmp_path))
    again = json.loads((tmp_path / "adapter_config.json").read_text())
    assert again == json.loads(text)


@pytest.mark.parametrize("mixed_first", [True, False])
def test_a_mixed_model_is_refused_in_words_before_anything_changes(mixed_first):
    ours, lora = OFTConfig(oft_block_size=4, target_modules=["0"]), LoraConfig(r=2, target_modules=["1"])
    model = net()
    keys = list(model.state_dict())
    if mixed_first:
        with pytest.raises(ConfigError, match="mixed"):
            get_peft_model(model, ours, mixed=True)
    else:
        model = get_peft_model(model, lora, mixed=True)
        keys = list(model.state_dict())
        with pytest.raises(ConfigError, match="mixed"):
            model.add_adapter("oft", ours)
        assert list(model.peft_config) == ["default"]
    assert list(model.state_dict()) == keys


def test_an_adapter_file_on_a_mixed_model_is_refused_in_words(tmp_path):
    get_peft_model(net(), OFTConfig(oft_block_size=4, target_modules=["0"])).save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="not supported for mixed models"):  # PEFT's own words
        PeftMixedModel.from_pretrained(net(), str(tmp_path))


def test_other_mixed_models_work_as_before():
    model = get_peft_model(net(), LoraConfig(r=2, target_modules=["0"]), mixed=True)
    model.add_adapter("b", peft.LoHaConfig(r=2, target_modules=["1"]))
    assert sorted(model.peft_config) == ["b", "default"]
