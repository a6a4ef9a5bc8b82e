"""One batch under several adapters gives each row what its adapter alone gives it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from orthotune import OFTConfig, get_peft_model
from orthotune.errors import ConfigError, OrthotuneError, UnsupportedLayerError
from orthotune.layers.mixed_batch import BASE, MixedBatch
from tests.support.contract_cases import randomize
from tests.support.contract_layers import Net
from tests.support.layer_models import everything, tokens

NAMES = ["b", BASE, "a", "a", "c", BASE, "b", "a"]
#: by adapter; together every option that changes how a row is turned, and two block sizes
ADAPTERS: dict[str, dict[str, Any]] = {
    "a": {"oft_block_size": 4},
    "b": {"oft_block_size": 4},
    "c": {"oft_block_size": 2, "block_share": True},
}
OUT = {
    "a": {"oft_block_size": 4, "side": "out"},
    "b": {"oft_block_size": 4, "magnitude": True},
    "c": {"oft_block_size": 4, "side": "out", "magnitude": True},
}
IN = {"a": {"oft_block_size": 4, "magnitude": True}, "b": {"oft_block_size": 4}, "c": {"r": 1}}
# A BLAS rounds the last rows of a product, beyond a multiple of four, in another order than those before them; and
# torch multiplies matrices itself, in yet another order, where that takes fewer than 400 multiplications.
LENGTH = 32  # fewer rows in all than would turn the weight instead of the input


def _layer(kind: str) -> nn.Module:
    kinds = {
        "linear": lambda: nn.Linear(12, 72),
        "no bias": lambda: nn.Linear(12, 72, bias=False),
        "conv1d of transformers": lambda: Conv1D(72, 12),
        "conv": lambda: nn.Conv1d(12, 8, 3, padding=1),
        "pixel": lambda: nn.Conv2d(12, 8, 1),
        "embedding": lambda: nn.Embedding(11, 12),
    }
    return kinds[kind]()


def _inputs(kind: str) -> Tensor:
    if kind == "embedding":
        return torch.arange(len(NAMES) * LENGTH).view(len(NAMES), LENGTH) * 7 % 11
    shape = {"conv": (12, LENGTH), "pixel": (12, 2, LENGTH)}.get(kind, (LENGTH, 12))
    return torch.randn(len(NAMES), *shape, dtype=torch.float64)


def _model(kind: str, adapters: dict[str, dict[str, Any]]) -> PeftModel:
    torch.manual_seed(1)
    model: Any = Net(_layer(kind)).double()
    for name, fields in adapters.items():
        config = OFTConfig(target_modules=["layer"], **fields)
        model = get_peft_model(model, config, name) if name == "a" else _more(model, name, config)
    for seed, name in enumerate(adapters):
        randomize(model, seed, name)
    return model.eval()


def _more(model: PeftModel, name: str, config: OFTConfig) -> PeftModel:
    model.add_adapter(name, config)
    return model


def _one_by_one(model: PeftModel, x: Tensor) -> Tensor:
    """The whole batch under each adapter, and of every result the rows that are its."""
    found = {}
    with model.disable_adapter():
        found[BASE] = model(x)
    for name in set(NAMES) - {BASE}:
        model.set_adapter(name)
        found[name] = model(x)
    model.set_adapter("a")
    return torch.stack([found[name][row] for row, name in enumerate(NAMES)])


@pytest.mark.parametrize("adapters", [ADAPTERS, OUT, IN], ids=["sizes", "sides", "one block"])
@pytest.mark.parametrize("kind", ["linear", "no bias", "conv1d of transformers", "conv", "pixel", "embedding"])
@torch.no_grad()
def test_a_mixed_batch_is_its_adapters_one_by_one_bit_for_bit(kind: str, adapters: dict[str, dict[str, Any]]) -> None:
    if kind == "embedding" and adapters is OUT:
        pytest.skip("an embedding turns in one way")
    model, x = _model(kind, adapters), _inputs(kind)
    expected = _one_by_one(model, x)
    for _ in range(2):  # the second time by the rotations that are side by side already
        found = model(x, adapter_names=NAMES)
        rows = [row for row, name in enumerate(NAMES) if torch.equal(found[row], expected[row])]
        assert rows == list(range(len(NAMES)))


@pytest.mark.parametrize("size", [16, 32])
@torch.no_grad()
def test_large_blocks_too(size: int) -> None:
    torch.manual_seed(0)
    model: Any = get_peft_model(Net(nn.Linear(96, 40)).double(), OFTConfig(target_modules=["layer"], r=96 // size), "a")
    model.add_adapter("b", OFTConfig(target_modules=["layer"], r=96 // size))
    randomize(randomize(model, 1, "a"), 2, "b").eval()
    x, names = torch.randn(5, 8, 96, dtype=torch.float64), ["b", "a", BASE, "a", "a"]
    found, expected = model(x, adapter_names=names), []
    for name in ("a", "b"):
        model.set_adapter(name)
        expected.append(model(x))
    with model.disable_adapter():
        expected.append(model(x))
    for row, name in enumerate(names):
        assert torch.equal(found[row], expected[["a", "b", BASE].index(name)][row])


@pytest.mark.parametrize("kind", ["linear", "embedding", "conv"])
def test_gradients_are_those_of_the_adapters_one_by_one(kind: str) -> None:
    model, x = _model(kind, IN), _inputs(kind)
    parameters = {n: p.requires_grad_() for n, p in model.named_parameters() if "oft_" in n}
    torch.manual_seed(4)
    weight = torch.randn_like(_one_by_one(model, x))
    parameters = {n: p.requires_grad_() for n, p in model.named_parameters() if "oft_" in n}
    for names in ([n] for n in ("a", "b", "c")):
        model.set_adapter(*names)
        for p in parameters.values():
            p.requires_grad_()
        rows = torch.tensor([name == names[0] for name in NAMES]).view(-1, *[1] * (weight.dim() - 1))
        (model(x) * weight * rows).sum().backward()
    expected = {n: p.grad.clone() for n, p in parameters.items()}
    model.zero_grad()
    (model(x, adapter_names=NAMES) * weight).sum().backward()
    for name, parameter in parameters.items():
        # sums over the rows of a batch, taken in another order
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_autocast_and_low_precision(dtype: torch.dtype) -> None:
    model, x = _model("linear", IN).float(), _inputs("linear").float()
    expected = _one_by_one(model, x)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found = model(x, adapter_names=NAMES)
    assert found.dtype == dtype
    # input, rotation, turned input, weight, product and scale are rounded once each
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=8 * torch.finfo(dtype).eps * expected.abs().max())


@torch.no_grad()
def test_rotations_kept_for_a_generation_are_not_used_for_other_numbers() -> None:
    model, x = _model("linear", IN), _inputs("linear")
    layer, batch = model.base_model.model.layer, MixedBatch(NAMES)
    before = layer(x, adapter_names=batch)
    randomize(model, 9, "b")
    after = layer(x, adapter_names=batch)
    assert torch.equal(after, layer(x, adapter_names=NAMES))
    assert not torch.equal(after, before)
    layer.set_scale("b", 0.5)
    assert torch.equal(layer(x, adapter_names=batch), layer(x, adapter_names=NAMES))
    assert not torch.equal(layer(x, adapter_names=batch), after)


@torch.no_grad()
def test_a_layer_without_an_adapter_is_the_base_for_its_rows() -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)).double()
    model = get_peft_model(net, OFTConfig(target_modules=["0"], r=2), "a")
    model.add_adapter("b", OFTConfig(target_modules=["1"], r=2))
    randomize(randomize(model, 1, "a"), 2, "b").eval()
    x = torch.randn(3, 4, 8, dtype=torch.float64)
    found = model(x, adapter_names=["a", "b", BASE])
    for row, name in enumerate(["a", "b"]):
        model.set_adapter(name)
        assert torch.equal(found[row], model(x)[row])


def test_merged_adapters_are_refused_and_disabled_ones_are_the_base() -> None:
    model, x = _model("linear", IN), _inputs("linear")
    model.merge_adapter(["a"])
    with pytest.raises(ConfigError, match="please call `unmerge_adapter` first"):
        model(x, adapter_names=NAMES)
    model.unmerge_adapter()
    with model.disable_adapter():
        assert torch.equal(model(x, adapter_names=NAMES), model(x))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a"] * 3, "3 names. Found: an input of shape"),
        (["a"] * 7 + ["bb"], "non-existing adapter.*Did you mean 'b'"),
        ("aaaaaaaa", "needed|Needed: a list with the name"),
    ],
)
def test_names_that_do_not_fit_are_refused(names: Any, words: str) -> None:
    model = _model("linear", IN)
    with pytest.raises(OrthotuneError, match=words):
        model(_inputs("linear"), adapter_names=names)
    layer = model.base_model.model.layer
    assert not layer._forward_pre_hooks


def test_training_is_refused() -> None:
    with pytest.raises(ConfigError, match="training mode"):
        _model("linear", IN).train()(_inputs("linear"), adapter_names=NAMES)


def test_layers_with_one_weight_for_the_batch_say_so() -> None:
    model = everything()
    with pytest.raises(UnsupportedLayerError, match=r"layer 'attention' \(MultiheadAttention\)"):
        model(tokens(), adapter_names=["default", BASE, BASE])
    with model.disable_adapter():
        plain = model(tokens())
    assert torch.equal(model(tokens(), adapter_names=[BASE] * 3), plain)


def test_the_output_of_an_attention_says_so() -> None:
    model = get_peft_model(
        nn.ModuleDict({"a": nn.MultiheadAttention(8, 2)}), OFTConfig(target_modules=["out_proj"], r=2)
    ).eval()
    with pytest.raises(UnsupportedLayerError, match="reads one weight for all rows"):
        model(adapter_names=["default"])
