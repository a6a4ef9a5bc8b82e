"""Sizes of single layers: patterns, PEFT's nearest divisor, errors that name the layer."""

from __future__ import annotations

import warnings

import pytest
import torch

from orthotune import OFTConfig, get_peft_model
from orthotune.errors import BlockSizeError, ConfigError


def block_sizes(model):
    return {n: m.oft_block_size["default"] for n, m in model.named_modules() if hasattr(m, "oft_block_size")}


def test_patterns_give_layers_their_own_size(llama):
    config = OFTConfig(
        oft_block_size=8,
        target_modules=["q_proj", "k_proj", "down_proj"],
        rank_pattern={"k_proj": 4},
        block_size_pattern={r"layers\.1\.mlp\.down_proj": 20},
    )
    sizes = block_sizes(get_peft_model(llama(), config))
    assert {name.removeprefix("base_model.model.model."): size for name, size in sizes.items()} == {
        "layers.0.self_attn.q_proj": 8,
        "layers.1.self_attn.q_proj": 8,
        "layers.0.self_attn.k_proj": 12,
        "layers.1.self_attn.k_proj": 12,
        "layers.0.mlp.down_proj": 8,
        "layers.1.mlp.down_proj": 20,
    }


def test_two_patterns_for_one_layer_contradict(llama):
    config = OFTConfig(target_modules=["q_proj"], rank_pattern={"q_proj": 4}, block_size_pattern={"q_proj": 4})
    with pytest.raises(ConfigError, match=r"layer 'model\.layers\.0\.self_attn\.q_proj'.*r=4.*block size 4"):
        get_peft_model(llama(), config)


def test_a_given_size_that_does_not_divide_names_layer_and_nearest(llama):
    model = llama()
    before = {n: type(m) for n, m in model.named_modules()}
    with pytest.raises(
        BlockSizeError,
        match=r"block_size=32 does not divide the 48 .*'model\.layers\.0\.self_attn\.q_proj'.*24, 16, 48",
    ):
        get_peft_model(model, OFTConfig(oft_block_size=32, target_modules=["q_proj", "down_proj"]))
    assert {n: type(m) for n, m in model.named_modules()} == before, "an error must leave the model as it was"


def test_the_default_size_follows_pefts_rule_with_one_warning_that_lists_the_layers(llama):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = get_peft_model(llama(), OFTConfig(target_modules=["q_proj", "down_proj"]))
    mine = [str(w.message) for w in caught if "block size does not divide" in str(w.message)]
    assert len(mine) == 1
    assert all(f"layers.{i}.{name}" in mine[0] for i in (0, 1) for name in ("self_attn.q_proj", "mlp.down_proj"))
    # 48: 24 is 8 away and 48 is 16 away; 80: 40 is 8 away, 20 is 12 away.
    assert set(block_sizes(model).values()) == {24, 40}


def test_magnitude_and_packed_shapes(llama):
    model = get_peft_model(llama(), OFTConfig(r=4, target_modules=["down_proj"], magnitude=True, block_share=True))
    layer = model.base_model.model.model.layers[0].mlp.down_proj
    assert layer.oft_R["default"].weight.shape == (1, 20 * 19 // 2)
    assert torch.equal(layer.oft_magnitude["default"].weight, torch.ones(48))
