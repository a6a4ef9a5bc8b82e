"""Merging: safe, all or nothing, and blind to nothing that happens to the model meanwhile."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from orthotune import OFTConfig, get_peft_model
from orthotune.errors import MergeError, OrthotuneError
from orthotune.layers.base import OFTLayer
from tests.support.contract_cases import base_parameters, randomize, same_bits, snapshot
from tests.support.layer_models import Everything, everything, linear, rotations, tokens


class Tied(nn.Module):
    """An embedding whose matrix is the output layer's too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embed(tokens).tanh())


class Clipped(nn.Module):
    """An embedding that shortens the rows that it looks up, and a layer that is merged before it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.last = nn.Embedding(11, 8, max_norm=1.0)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.first(self.last(tokens))


def _break(model: nn.Module, layer: str, value: float) -> None:
    with torch.no_grad():
        parameter = next(p for n, p in model.named_parameters() if layer in n and "oft_" in n)
        parameter.view(-1)[0] = value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("layer", ["embed", "conv", "attention", "mix", "head"])
def test_a_broken_adapter_is_named_and_no_layer_changes(layer: str, value: float) -> None:
    model = everything()
    _break(model, layer, value)
    before = snapshot(dict(model.named_parameters()))
    with pytest.raises(MergeError) as caught:
        model.merge_adapter(safe_merge=True)
    assert f"merging ['default'] into layer '{layer}'. Found: NaN or infinite values in adapter 'default'" in str(
        caught.value
    )
    assert "Nothing was changed" in str(caught.value)
    with pytest.raises(MergeError, match=f"layer '{layer}'"):
        model.merge_and_unload(safe_merge=True)
    after = dict(model.named_parameters())
    assert all(torch.equal(after[n], v) or (layer in n and "oft_" in n) for n, v in before.items())
    assert not any(m.merged for m in model.modules() if isinstance(m, OFTLayer))
    # the layer says so itself, too, and keeps what was merged before
    broken = next(m for m in model.modules() if isinstance(m, OFTLayer) and m.oft_settings["default"].layer == layer)
    with pytest.raises(MergeError, match=layer):
        broken.merge(safe_merge=True)
    assert not broken.merged


def test_a_safe_merge_on_top_of_another_leaves_the_first_in_place() -> None:
    model = linear()
    model.add_adapter("broken", OFTConfig(oft_block_size=4, target_modules=["layer"]))
    _break(model, "broken", float("nan"))
    model.merge_adapter(["default"])
    merged = snapshot(base_parameters(model))
    with pytest.raises(MergeError, match=r"merging \['broken'\] into layer 'layer'"):
        model.merge_adapter(["broken"], safe_merge=True)
    same_bits(base_parameters(model), merged)
    layer = model.base_model.model.layer
    with pytest.warns(UserWarning, match="additionally merging"), pytest.raises(MergeError, match="default', 'broken"):
        layer.merge(safe_merge=True, adapter_names=["broken"])
    same_bits(base_parameters(model), merged)
    assert layer.merged_adapters == ["default"]


def test_a_broken_base_weight_is_found() -> None:
    model = linear()
    with torch.no_grad():
        model.base_model.model.layer.base_layer.weight[3, 4] = float("nan")
    with pytest.raises(MergeError, match="NaN or infinite values in the new weight"):
        model.merge_adapter(safe_merge=True)


def test_a_weight_too_large_for_float16_is_found() -> None:
    model = linear(magnitude=True)
    model.half()
    with torch.no_grad():
        model.base_model.model.layer.oft_magnitude["default"].weight.fill_(6e4)
        model.base_model.model.layer.base_layer.weight.fill_(2)
    with pytest.raises(MergeError, match="NaN or infinite values in the new weight"):
        model.merge_adapter(safe_merge=True)


@pytest.mark.parametrize("fields", [{"magnitude": True}, {"use_cayley_neumann": True}], ids=["magnitude", "neumann"])
@pytest.mark.parametrize("method", ["merge_adapter", "merge_and_unload"])
def test_one_layer_that_cannot_merge_stops_all(fields: dict[str, Any], method: str) -> None:
    model = randomize(
        get_peft_model(Clipped(), OFTConfig(oft_block_size=4, target_modules=["first", "last"], **fields))
    )
    before = snapshot(base_parameters(model))
    with pytest.raises(MergeError, match=r"into embedding 'last'. Found: max_norm=1.0, which would clip the rows"):
        getattr(model, method)()
    same_bits(base_parameters(model), before)
    assert all(isinstance(m, OFTLayer) for m in (model.base_model.model.first, model.base_model.model.last))


def test_a_rotation_of_a_clipped_embedding_merges() -> None:
    model = randomize(get_peft_model(Clipped(), OFTConfig(oft_block_size=4, target_modules=["first", "last"])))
    expected = model(tokens())
    model.merge_adapter()
    torch.testing.assert_close(model(tokens()), expected, rtol=0, atol=1e-5)  # float32, the norm once more


@pytest.mark.parametrize("targets", [["embed"], ["head"], ["embed", "head"]])
def test_tied_weights(targets: list[str]) -> None:
    torch.manual_seed(0)
    model = randomize(get_peft_model(Tied(), OFTConfig(oft_block_size=4, target_modules=targets))).eval()
    original = model.base_model.model.get_submodule(targets[0]).base_layer.weight
    bits, expected = original.detach().clone(), model(tokens())
    model.merge_adapter()
    torch.testing.assert_close(model(tokens()), expected, rtol=0, atol=1e-5)  # float32, two products of 8
    if len(targets) == 1:
        (other,) = {"embed", "head"} - set(targets)
        untouched = model.base_model.model.get_submodule(other)
        assert untouched.weight is original
    assert torch.equal(original, bits)
    model.unmerge_adapter()
    parts = [model.base_model.model.get_submodule(name) for name in ("embed", "head")]
    assert all(getattr(part, "base_layer", part).weight is original for part in parts)
    torch.testing.assert_close(model.merge_and_unload()(tokens()), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_that_moves_while_merged(dtype: torch.dtype) -> None:
    model = everything()
    expected = snapshot(base_parameters(copy.deepcopy(model).to(dtype)))
    model.merge_adapter()
    model.to(dtype)
    model.unmerge_adapter()
    same_bits(base_parameters(model), expected)
    model.merge_adapter()
    assert all(p.dtype == dtype for p in base_parameters(model).values())


def test_another_merge_after_a_move() -> None:
    model = linear()
    model.add_adapter("more", OFTConfig(oft_block_size=4, target_modules=["layer"]))
    randomize(model, adapter="more")
    model.merge_adapter(["default"])
    model.half()
    with pytest.warns(UserWarning, match="additionally merging"):
        model.merge_adapter(["more"])
    assert model.base_model.model.layer.base_layer.weight.dtype == torch.float16


def test_a_merge_keeps_the_memory_format_and_the_flags() -> None:
    base = nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model = linear(base=base)
    weight = model.base_model.model.layer.base_layer.weight
    weight.requires_grad_()
    model.merge_adapter()
    merged = model.base_model.model.layer.base_layer.weight
    assert merged is not weight and merged.is_contiguous(memory_format=torch.channels_last)
    assert merged.requires_grad and isinstance(merged, nn.Parameter)


def test_an_error_of_any_kind_leaves_no_layer_half_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    model = linear()
    model.add_adapter("more", OFTConfig(oft_block_size=4, target_modules=["layer"]))
    model.merge_adapter(["default"])
    merged, layer = snapshot(base_parameters(model)), model.base_model.model.layer

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(layer, "rotated_matrices", fail)
    with pytest.warns(UserWarning, match="additionally merging"), pytest.raises(MemoryError):
        layer.merge(adapter_names=["more"])
    same_bits(base_parameters(model), merged)


def test_merge_and_unload_of_one_of_two_adapters() -> None:
    model = everything()
    expected = model(tokens())
    model.add_adapter("other", OFTConfig(oft_block_size=4, target_modules=["mix"]))
    randomize(model, adapter="other")
    merged = model.merge_and_unload(adapter_names=["default"], progressbar=False)
    assert type(merged) is Everything and not any(isinstance(m, OFTLayer) for m in merged.modules())
    torch.testing.assert_close(merged(tokens()), expected, rtol=0, atol=1e-5)


def test_unload_takes_a_merge_out() -> None:
    model = everything()
    with model.disable_adapter():
        plain = model(tokens())
    model.merge_adapter()
    torch.testing.assert_close(model.unload()(tokens()), plain, rtol=0, atol=1e-6)


def test_unmerge_without_a_merge_changes_nothing() -> None:
    model = everything()
    before = snapshot(dict(model.named_parameters()))
    for layer in (m for m in model.modules() if isinstance(m, OFTLayer)):
        layer.unmerge()
    same_bits(dict(model.named_parameters()), before)


@pytest.mark.parametrize("name", ["embed", "conv", "mix", "head"])
@pytest.mark.parametrize("merged", [False, True])
def test_delta_weight(name: str, merged: bool) -> None:
    model = everything(magnitude=True)
    layer = model.base_model.model.get_submodule(name)
    weight = layer.base_layer.weight.detach().clone()
    model.merge_adapter()
    expected = layer.base_layer.weight.detach() - weight
    if not merged:
        model.unmerge_adapter()
    # the same arithmetic from the same original
    torch.testing.assert_close(layer.get_delta_weight("default"), expected, rtol=0, atol=1e-6)


def test_attention_has_no_single_delta() -> None:
    with pytest.raises(OrthotuneError, match="one delta weight of a layer that has"):
        everything().base_model.model.attention.get_delta_weight("default")


def test_every_rotation_is_found() -> None:
    assert len(rotations(everything())) == 4 + 4
