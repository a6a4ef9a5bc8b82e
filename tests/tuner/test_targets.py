"""Which layers are meant, and what a misspelt name gets."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from orthotune import OFTConfig, get_peft_model
from orthotune.errors import TargetError, UnsupportedLayerError


def targeted(model):
    return {n.rpartition(".")[2] for n, m in model.named_modules() if hasattr(m, "oft_block_size")}


def test_default_targets_of_an_architecture(llama):
    assert targeted(get_peft_model(llama(), OFTConfig(r=4))) == {"q_proj", "v_proj"}


def test_all_linear_leaves_the_output_layer_out(llama):
    assert targeted(get_peft_model(llama(), OFTConfig(r=4, target_modules="all-linear"))) == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip


def test_regex_exclude_and_layers(llama):
    model = get_peft_model(llama(), OFTConfig(r=4, target_modules=r".*\.(q|v)_proj", exclude_modules=["v_proj"]))
    assert targeted(model) == {"q_proj"}
    config = OFTConfig(r=4, target_modules=["q_proj"], layers_to_transform=[1], layers_pattern="layers")
    names = [n for n, m in get_peft_model(llama(), config).named_modules() if hasattr(m, "oft_block_size")]
    assert names == ["base_model.model.model.layers.1.self_attn.q_proj"]


def test_no_match_names_the_nearest(llama):
    with pytest.raises(TargetError, match=r"target_modules=\['q_prj'\].*q_proj"):
        get_peft_model(llama(), OFTConfig(r=4, target_modules=["q_prj"]))


def test_one_misspelt_name_among_good_ones_is_said(llama):
    with pytest.warns(UserWarning, match=r"is called 'v_prj'.*v_proj"):
        get_peft_model(llama(), OFTConfig(r=4, target_modules=["q_proj", "v_prj"]))


def test_unknown_architecture_lists_its_linear_layers():
    model = nn.Sequential()
    model.add_module("first", nn.Linear(4, 4))
    with pytest.raises(TargetError, match="first"):
        get_peft_model(model, OFTConfig(r=2))


def test_a_container_is_not_a_layer(llama):
    with pytest.raises(UnsupportedLayerError, match=r"layers\.0\.mlp.*LlamaMLP"):
        get_peft_model(llama(), OFTConfig(r=4, target_modules=["mlp"]))


def test_a_quantized_or_unknown_weight_is_refused_by_name():
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    with pytest.raises(UnsupportedLayerError, match=r"layer '0'.*torch\.int8"):
        get_peft_model(model, OFTConfig(r=2, target_modules=["0"]))


def test_a_layer_that_no_kind_serves_is_refused():
    model = nn.Sequential(nn.Bilinear(4, 4, 3))
    with pytest.raises(UnsupportedLayerError, match="Bilinear"):
        get_peft_model(model, OFTConfig(r=2, target_modules=["0"]))
