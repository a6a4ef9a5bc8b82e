"""Adapters of one layer: added, switched, deleted, spread over part of a model."""

from __future__ import annotations

import warnings

import pytest
import torch

from orthotune import OFTConfig
from orthotune.errors import BlockSizeError, ConfigError, UnsupportedLayerError
from tests.support.contract_cases import Case, cases, randomize, rotation_parameters
from tests.support.contract_layers import KINDS
from tests.support.layer_models import everything, linear, tokens


@pytest.mark.parametrize("case", cases("exact"), ids=str)
def test_switching_and_deleting(case: Case) -> None:
    model, inputs = case.trained(), case.inputs()
    with torch.no_grad():
        plain, first = case.base()(*inputs), model(*inputs)
        model.add_adapter("second", OFTConfig(**case.config | {"magnitude": True}))
        randomize(model, seed=9, adapter="second").eval()
        assert torch.equal(model(*inputs), first)
        model.set_adapter("second")
        second = model(*inputs)
        assert (second - first).abs().max() > 1e-2
        trainable = {n for n, p in rotation_parameters(model).items() if p.requires_grad}
        assert trainable and all("second" in name for name in trainable)
        model.set_adapter("default")
        assert torch.equal(model(*inputs), first)
        model.set_adapter("second")
        model.delete_adapter("default")
        assert not any("default" in name for name in rotation_parameters(model))
        assert torch.equal(model(*inputs), second)
        model.delete_adapter("second")
        assert not rotation_parameters(model)
        assert torch.equal(model.base_model.model(*inputs), plain)  # PEFT's outer class wants an adapter to be there


def test_deleting_the_active_adapter_makes_another_one_active() -> None:
    model = linear()
    model.add_adapter("second", OFTConfig(oft_block_size=4, target_modules=["layer"]))
    with pytest.warns(UserWarning, match="was active which is now deleted"):
        model.delete_adapter("default")
    assert model.active_adapters == ["second"]


def test_nothing_of_a_deleted_adapter_is_left() -> None:
    model = linear()
    with pytest.warns(UserWarning, match="layer: block_size=5 -> 3 x 4"):
        model.add_adapter("second", OFTConfig(peft_type="OFT", oft_block_size=5, target_modules=["layer"]))
    model.delete_adapter("second")
    layer = model.base_model.model.layer
    kept = (*layer.adapter_layer_names, *layer.other_param_names)
    assert not [name for name in kept if "second" in getattr(layer, name)]
    with warnings.catch_warnings():  # the size of the new one fits; nothing may be said of the old one
        warnings.simplefilter("error")
        model.add_adapter("second", OFTConfig(oft_block_size=4, target_modules=["layer"]))


def test_adapters_on_unlike_parts_of_a_model() -> None:
    model = everything(target_modules=["mix", "head"])
    first = model(tokens())
    model.add_adapter("second", OFTConfig(oft_block_size=4, target_modules=["embed", "attention", "mix"]))
    randomize(model, adapter="second").eval()
    assert torch.equal(model(tokens()), first)
    net = model.base_model.model
    model.base_model.set_adapter(["default", "second"])
    assert net.head.adapters_in_use() == ["default"]
    assert net.embed.adapters_in_use() == ["second"]
    assert net.mix.adapters_in_use() == ["default", "second"]
    both = model(tokens())
    model.merge_adapter()
    torch.testing.assert_close(model(tokens()), both, rtol=0, atol=1e-5)  # float32, five layers
    model.unmerge_adapter()
    model.delete_adapter("second")
    torch.testing.assert_close(model(tokens()), first, rtol=0, atol=0)


@pytest.mark.parametrize("merged", [False, True])
def test_disabling_while_merged(merged: bool) -> None:
    model, plain = everything(), everything(trained=False)
    turned = model(tokens())
    if merged:
        model.merge_adapter()
    with model.disable_adapter():
        torch.testing.assert_close(model(tokens()), plain(tokens()), rtol=0, atol=1e-6)
    torch.testing.assert_close(model(tokens()), turned, rtol=0, atol=1e-6)


def test_a_mixed_batch_of_a_merged_layer_is_refused_by_every_kind() -> None:
    model = everything()
    model.merge_adapter()
    net = model.base_model.model
    x = torch.randn(3, 5, 8)
    calls = [(net.embed, (tokens(),)), (net.conv, (x.mT,)), (net.mix, (x,)), (net.attention, (x, x, x))]
    for layer, inputs in calls:
        layer(*inputs, adapter_names=None) if layer is not net.attention else None
        with pytest.raises(ConfigError, match="there are merged adapters, please call `unmerge_adapter` first"):
            layer(*inputs, adapter_names=["default"] * 3)


# Kinds of convolutions that are tried with one side have the other one, too.
@pytest.mark.parametrize("kind", [KINDS["embedding"]], ids=lambda k: k.name)
def test_a_side_without_a_meaning_is_refused(kind) -> None:
    with pytest.raises(UnsupportedLayerError) as caught:
        Case(kind, side="out").fresh()
    assert str(caught.value) == (
        "side='out' for layer 'layer' (Embedding). Needed: side='in', the only one with a meaning for this layer. "
        "Exclude the layer or change the side."
    )


def test_a_layer_is_not_replaced_when_another_cannot_be_adapted() -> None:
    model = everything(target_modules=["mix"])
    before = {n: type(m) for n, m in model.named_modules()}
    with pytest.raises(BlockSizeError, match="block_size=5 does not divide the 8 features of layer 'conv|'embed|"):
        model.add_adapter("second", OFTConfig(oft_block_size=5, target_modules=["head", "embed"]))
    assert {n: type(m) for n, m in model.named_modules()} == before


def test_magnitudes_lie_part_after_part() -> None:
    layer = everything(magnitude=True).base_model.model.attention
    whole = layer.oft_magnitude["default"].weight
    assert whole.shape == (32,)
    parts = [layer.magnitude("default", part) for part in ("q", "k", "v", "out")]
    assert torch.equal(torch.cat(parts), whole)
    assert everything().base_model.model.mix.magnitude("default") is None


def test_random_start() -> None:
    torch.manual_seed(0)
    model = linear(trained=False, init_weights=False)
    (weight,) = rotation_parameters(model).values()
    # 18 draws of a standard deviation of 0.1
    assert 0.05 < weight.std().item() < 0.2


def test_the_library_is_named_in_the_representation() -> None:
    assert "orthotune.Linear" in repr(linear())
