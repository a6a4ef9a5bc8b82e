"""A module that is registered several times: each of its names is a target, and all places get the one layer."""

from __future__ import annotations

import json
from copy import deepcopy

import pytest
import torch
import transformers as tf
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn

from orthotune import OFTConfig, get_peft_model, load_adapter
from orthotune.errors import AdapterFileError, TargetError
from orthotune.layers.base import OFTLayer

T5 = tf.T5Config(
    vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0, dropout_rate=0.0
)
BART = tf.BartConfig(
    vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2,
    encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=32, pad_token_id=0,
)  # fmt: skip


class Twice(nn.Module):
    """One linear layer under two names, and a block with a layer in it under two names."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.inner = nn.ModuleDict({"again": self.first, "own": nn.Linear(8, 8)})
        self.block = nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.same = self.block

    def forward(self, x):
        x = self.inner["own"](self.inner["again"](self.first(x).tanh()).tanh())
        return self.same(self.block(x))


IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


def joined(model):
    """As older versions of transformers built it: the embeddings are one module."""
    body = getattr(model, "model", model)
    for part in ("encoder", "decoder"):
        if hasattr(body, part):
            getattr(body, part).embed_tokens = body.shared
    return model


BOTH = {"input_ids": IDS, "labels": IDS}
MODELS = {
    "T5, one module": (lambda: joined(tf.T5ForConditionalGeneration(deepcopy(T5))), BOTH),
    "T5 encoder, one module": (lambda: joined(tf.T5EncoderModel(deepcopy(T5))), {"input_ids": IDS}),
    "BART, one module": (lambda: joined(tf.BartForConditionalGeneration(deepcopy(BART))), BOTH),
    "T5ForConditionalGeneration": (lambda: tf.T5ForConditionalGeneration(deepcopy(T5)), BOTH),
    "T5EncoderModel": (lambda: tf.T5EncoderModel(deepcopy(T5)), {"input_ids": IDS}),
    "BartForConditionalGeneration": (lambda: tf.BartForConditionalGeneration(deepcopy(BART)), BOTH),
    "BartModel": (lambda: tf.BartModel(deepcopy(BART)), {"input_ids": IDS}),
    "toy": (Twice, {"x": X}),
}


def make(kind):
    torch.manual_seed(0)
    return MODELS[kind][0]().eval()


def run(model, kind):
    with torch.no_grad():
        found = model(**MODELS[kind][1])
    return found if isinstance(found, torch.Tensor) else found[1] if "labels" in MODELS[kind][1] else found[0]


def groups(kind):
    """The names of every layer with several, by the module or by the weight of one and the same kind of embedding."""
    names = {}
    for key, module in make(kind).named_modules(remove_duplicate=False):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            known = id(module.weight) if isinstance(module, nn.Embedding) else id(module)
            names.setdefault(known, []).append(key)
    return [keys for keys in names.values() if len(keys) > 1]


GROUPS = [(kind, keys) for kind in MODELS for keys in groups(kind)]
#: each name of one module; of several modules with one weight, the name that is the input embedding's
CASES = [
    (kind, keys, key)
    for kind, keys in GROUPS
    for key in (keys if "one module" in kind or kind == "toy" else [next(k for k in keys if k.endswith("shared"))])
]
APART = [(kind, keys, key) for kind, keys in GROUPS for key in keys if (kind, keys, key) not in CASES]


def test_there_are_such_modules():
    kinds = {kind for kind, _, _ in CASES}
    assert kinds == set(MODELS), kinds
    assert APART


def fill(model, adapter="default"):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f".{adapter}" in name and "oft_" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def by_hand(kind, keys, adapter_model):
    """The base with the turned weight written into the one module."""
    model = make(kind)
    layer = next(module for module in adapter_model.modules() if isinstance(module, OFTLayer))
    with torch.no_grad():
        turned = layer.rotated_matrices(["default"], every_block=True)["weight"]
        new = nn.Parameter(turned.clone())
        for key in keys:
            model.get_submodule(key).weight = new  # a tied output layer keeps the weight that it has
    return model


@pytest.mark.parametrize("kind, keys, target", CASES)
@pytest.mark.parametrize("how", ["list", "regex"])
def test_every_name_is_a_target_and_every_place_gets_the_layer(kind, keys, target, how, tmp_path):
    base_output = run(make(kind), kind)
    targets = [target] if how == "list" else target.replace(".", r"\.")
    model = get_peft_model(make(kind), OFTConfig(oft_block_size=4, target_modules=targets))
    layers = {id(model.base_model.model.get_submodule(key)) for key in keys}
    assert len(layers) == 1 and isinstance(model.base_model.model.get_submodule(keys[0]), OFTLayer)
    assert torch.equal(run(model, kind), base_output)
    fill(model)
    turned = run(model, kind)
    assert not torch.allclose(turned, base_output, atol=1e-3)
    assert torch.allclose(turned, run(by_hand(kind, keys, model), kind), atol=1e-5)  # one product more, in float32

    model.save_pretrained(str(tmp_path))
    saved = [key for key in load_file(tmp_path / "adapter_model.safetensors") if "oft_" in key]
    assert len(saved) == 1
    again = PeftModel.from_pretrained(make(kind), str(tmp_path))
    assert torch.equal(run(again.eval(), kind), turned)
    other, _ = load_adapter(make(kind), tmp_path)
    assert torch.equal(run(other.eval(), kind), turned)

    model.merge_adapter()
    assert torch.allclose(run(model, kind), turned, atol=1e-5)
    model.unmerge_adapter()
    assert torch.equal(run(model, kind), turned)
    merged = again.merge_and_unload()
    assert torch.allclose(run(merged, kind), turned, atol=1e-5)
    bare = model.unload()
    assert torch.equal(run(bare, kind), base_output)
    for unloaded in (merged, bare):
        assert not any(isinstance(module, OFTLayer) for module in unloaded.modules())
        first = unloaded.get_submodule(keys[0])
        assert all(torch.equal(unloaded.get_submodule(key).weight, first.weight) for key in keys)
    assert len({id(bare.get_submodule(key)) for key in keys}) == 1


@pytest.mark.parametrize("kind, keys, target", CASES)
def test_every_name_works_in_patterns_exclusions_and_layer_settings(kind, keys, target, recwarn):
    for fields in ({"block_size_pattern": {target: 2}}, {"layer_settings": {target: {"block_size": 2}}}):
        model = get_peft_model(make(kind), OFTConfig(oft_block_size=4, target_modules=[keys[0]], **fields))
        assert model.base_model.model.get_submodule(keys[-1]).oft_block_size == {"default": 2}
    assert not [w for w in recwarn if "fits no layer" in str(w.message)]
    with pytest.raises(ValueError, match="target"):
        get_peft_model(make(kind), OFTConfig(oft_block_size=4, target_modules=[keys[0]], exclude_modules=[target]))


@pytest.mark.parametrize("kind, keys, target", CASES)
def test_a_second_adapter_goes_into_the_same_layer(kind, keys, target):
    model = get_peft_model(make(kind), OFTConfig(oft_block_size=4, target_modules=[keys[0]]))
    model.add_adapter("b", OFTConfig(oft_block_size=2, target_modules=[target]))
    layers = [module for module in model.modules() if isinstance(module, OFTLayer)]
    assert len(layers) == 1 and layers[0].oft_block_size == {"default": 4, "b": 2}
    model.delete_adapter("default")
    assert layers[0].oft_block_size == {"b": 2}


@pytest.mark.parametrize("kind, keys, target", CASES)
def test_a_file_may_say_any_of_the_names_but_not_different_numbers(kind, keys, target, tmp_path):
    model = get_peft_model(make(kind), OFTConfig(oft_block_size=4, target_modules=[keys[0]]))
    fill(model)
    model.save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_model.safetensors"
    ((key, tensor),) = ((k, t) for k, t in load_file(path).items() if "oft_" in k)
    renamed = key.replace(f"base_model.model.{keys[0]}.", f"base_model.model.{target}.")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "target_modules": [target]}))
    save_file({renamed: tensor}, path)
    assert torch.equal(run(PeftModel.from_pretrained(make(kind), str(tmp_path)).eval(), kind), run(model, kind))
    if renamed != key:
        save_file({key: tensor, renamed: tensor.clone()}, path)
        assert torch.equal(run(PeftModel.from_pretrained(make(kind), str(tmp_path)).eval(), kind), run(model, kind))
        save_file({key: tensor, renamed: tensor + 1}, path)
        with pytest.raises(AdapterFileError, match="the same layer"):
            PeftModel.from_pretrained(make(kind), str(tmp_path))


@pytest.mark.parametrize("kind, keys, target", APART)
def test_an_embedding_with_a_weight_of_others_is_adapted_alone_by_its_own_name(kind, keys, target, tmp_path):
    base_output = run(make(kind), kind)
    model = get_peft_model(make(kind), OFTConfig(oft_block_size=4, target_modules=[target]))
    found = [key for key, module in model.named_modules(remove_duplicate=False) if isinstance(module, OFTLayer)]
    assert found == [f"base_model.model.{target}"]
    fill(model)
    turned = run(model, kind)
    assert not torch.equal(turned, base_output)
    model.save_pretrained(str(tmp_path))
    again = PeftModel.from_pretrained(make(kind), str(tmp_path)).eval()
    assert torch.equal(run(again, kind), turned)
    assert torch.allclose(run(again.merge_and_unload(), kind), turned, atol=1e-5)
    shared = next(key for key in keys if key.endswith("shared"))
    with pytest.raises(TargetError, match="shares its weight"):
        model.add_adapter("b", OFTConfig(oft_block_size=4, target_modules=[shared]))
    assert list(model.peft_config) == ["default"]


@pytest.mark.parametrize("kind", [kind for kind, keys in GROUPS if "Generation" in kind or "EncoderModel" in kind])
def test_embeddings_that_are_all_named_stay_apart(kind):
    model = get_peft_model(make(kind), OFTConfig(oft_block_size=4, target_modules=["embed_tokens"]))
    layers = [module for module in model.modules() if isinstance(module, OFTLayer)]
    assert len(layers) == len([key for _, keys in GROUPS if _ == kind for key in keys if key.endswith("embed_tokens")])


@pytest.mark.parametrize("kind, keys, target", [case for case in CASES if "toy" not in case[0]])
def test_a_merged_model_is_saved_and_read_again(kind, keys, target, tmp_path):
    model = get_peft_model(make(kind), OFTConfig(oft_block_size=4, target_modules=[target]))
    fill(model)
    turned = run(model, kind)
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path)
    assert torch.allclose(run(type(merged).from_pretrained(tmp_path).eval(), kind), turned, atol=1e-5)
