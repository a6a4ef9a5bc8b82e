"""A resized vocabulary comes back from a file, whichever of its matrices is adapted, saved whole or neither."""

from __future__ import annotations

import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from orthotune import OFTConfig, get_peft_model

IDS = torch.tensor([[1, 2, 41, 42], [3, 44, 40, 4]])
MODELS = {
    "llama": (LlamaForCausalLM, lambda tie: LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=tie,
    ), "embed_tokens", "q_proj"),
    "gpt2": (GPT2LMHeadModel, lambda tie: GPT2Config(
        n_embd=16, n_layer=1, n_head=2, vocab_size=40, n_positions=16, tie_word_embeddings=tie,
    ), "wte", "c_attn"),
}  # fmt: skip
FIELDS = ["{mid}", "{mid} {table}", "{mid} lm_head", "{table} lm_head", "{table}", "lm_head"]


def resized(cls, folder, seed):
    model = cls.from_pretrained(folder).eval()
    torch.manual_seed(seed)  # the new rows are drawn anew by whoever loads the adapter
    model.resize_token_embeddings(45, mean_resizing=False)
    return model


def adapted(kind, tie, targets, folder, resize=True):
    cls, config, table, mid = MODELS[kind]
    torch.manual_seed(0)
    cls(config(tie)).save_pretrained(folder)
    base = resized(cls, folder, 3) if resize else cls.from_pretrained(folder).eval()
    names = targets.format(table=table, mid=mid).split()
    model = get_peft_model(base, OFTConfig(oft_block_size=4, target_modules=names)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("targets", FIELDS)
@pytest.mark.parametrize("layers", ["auto", True])
def test_a_resized_model_comes_back(kind, tie, targets, layers, tmp_path):
    model = adapted(kind, tie, targets, tmp_path / "base")
    model.save_pretrained(str(tmp_path / "adapter"), save_embedding_layers=layers)
    again = PeftModel.from_pretrained(resized(MODELS[kind][0], tmp_path / "base", 77), str(tmp_path / "adapter"))
    assert torch.allclose(again.eval()(IDS).logits, model(IDS).logits, atol=1e-6)


@pytest.mark.parametrize("targets", FIELDS)
def test_what_is_left_out_on_demand_is_said(targets, tmp_path):
    model = adapted("llama", False, targets, tmp_path / "base")
    with pytest.warns(UserWarning, match="vocabulary was resized.*save_embedding_layers=True"):
        get_peft_model_state_dict(model, save_embedding_layers=False)


@pytest.mark.parametrize("targets", FIELDS)
def test_a_vocabulary_of_its_old_size_is_saved_as_before(targets, tmp_path):
    model = adapted("llama", False, targets, tmp_path / "base", resize=False)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        model.save_pretrained(str(tmp_path / "adapter"))
    assert not [w for w in found if "resized" in str(w.message)]
    keys = [key for key in load_file(tmp_path / "adapter" / "adapter_model.safetensors") if "oft_" not in key]
    assert all(".base_layer." in key for key in keys)
