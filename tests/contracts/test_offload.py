"""A model that is offloaded, before or after it is adapted, computes what it computes in place, merged or not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from accelerate.hooks import remove_hook_from_module
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from contracts.cases import randomize, within_rounding
from contracts.layers import AttentionNet
from orthotune import OFTConfig, get_peft_model

CPU = torch.device("cpu")
#: attention reads the weight of the layer inside it past that layer's hook, adapted or not
WHOLE = ["MultiheadAttention"]


class Chain(nn.Module):
    """A layer between two that are not adapted, so that there is a device to offload from and to."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer, self.after = layer, nn.Linear(width, 5)
        self.channels_first = isinstance(layer, (nn.Conv1d, nn.Conv2d))

    def forward(self, *inputs: Tensor) -> Tensor:
        found = self.layer(*inputs)
        return self.after(found.movedim(1, -1) if self.channels_first else found)


def _noisy_transposed() -> nn.Module:
    layer = Conv1D(20, 12)
    nn.init.normal_(layer.weight, std=0.4)
    nn.init.normal_(layer.bias)
    return layer


class SelfAttention(nn.Module):
    """Attention on one input."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = AttentionNet(nn.MultiheadAttention(8, 2, batch_first=True))

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x)


#: layer, width of its outputs, shape of its inputs, name of the target
LAYERS: dict[str, tuple[Callable[[], nn.Module], int, tuple[int, ...], str]] = {
    "linear": (lambda: nn.Linear(12, 20), 20, (3, 5, 12), "layer"),
    "conv1d": (lambda: nn.Conv1d(8, 12, 3, padding=1), 12, (3, 8, 7), "layer"),
    "conv2d": (lambda: nn.Conv2d(4, 8, (3, 1)), 8, (3, 4, 7, 6), "layer"),
    "conv2d_1x1": (lambda: nn.Conv2d(8, 12, 1), 12, (3, 8, 5, 4), "layer"),
    "embedding": (lambda: nn.Embedding(11, 12), 12, (3, 5), "layer"),
    "transposed_linear": (_noisy_transposed, 20, (3, 5, 12), "layer"),
    "attention": (SelfAttention, 8, (3, 5, 8), "layer.attention.layer"),
}
FIELDS: dict[str, dict[str, Any]] = {"in": {}, "out": {"side": "out"}, "magnitude": {"magnitude": True}}


def _group(kind: str) -> Callable[[nn.Module, Path], nn.Module]:
    def offload(model: nn.Module, folder: Path) -> nn.Module:
        from diffusers.hooks import apply_group_offloading

        apply_group_offloading(
            model, onload_device=CPU, offload_device=CPU, offload_type=kind,
            num_blocks_per_group=1 if kind == "block_level" else None,
        )  # fmt: skip
        return model

    return offload


def _dispatched(model: nn.Module, folder: Path) -> nn.Module:
    places = {"layer": "disk", "after": "cpu"}
    return dispatch_model(
        model, places, main_device="cpu", offload_dir=str(folder), force_hooks=True, preload_module_classes=WHOLE
    )


OFFLOADS: dict[str, Callable[[nn.Module, Path], nn.Module]] = {
    "cpu": lambda model, folder: cpu_offload(model, CPU, preload_module_classes=WHOLE),
    "disk": lambda model, folder: disk_offload(model, str(folder), CPU, preload_module_classes=WHOLE),
    "dispatch": _dispatched,
    "group-leaf": _group("leaf_level"),
    "group-block": _group("block_level"),
}
#: ``dispatch`` puts this layer on the disk, too
FEW = {"disk": ("linear", "attention"), "group-block": ("linear", "conv2d", "embedding", "attention")}
CASES = [
    (offload, layer, fields)
    for offload in OFFLOADS
    for layer in LAYERS
    for fields in FIELDS
    if layer in FEW.get(offload, LAYERS)
    and (fields == "in" or (layer in ("linear", "conv2d", "embedding") and offload not in FEW))
    and (layer, fields) != ("embedding", "out")
]


def _base(layer: str) -> nn.Module:
    build, width, _, _ = LAYERS[layer]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Chain(build(), width).eval().requires_grad_(False)


def _inputs(layer: str) -> Tensor:
    shape, draw = LAYERS[layer][2], torch.Generator().manual_seed(2)
    if layer == "embedding":
        return torch.randint(11, shape, generator=draw)
    return torch.randn(shape, generator=draw)


def _config(layer: str, fields: str) -> OFTConfig:
    return OFTConfig(oft_block_size=4, target_modules=[LAYERS[layer][3]], **FIELDS[fields])


def _plain(layer: str, fields: str) -> Any:
    return randomize(get_peft_model(_base(layer), _config(layer, fields)).eval())


def _offloaded(offload: str, layer: str, fields: str, first: str, folder: Path) -> Any:
    if first == "adapter":
        tuned = _plain(layer, fields)
        OFFLOADS[offload](tuned.base_model.model, folder)
        return tuned
    base = OFFLOADS[offload](_base(layer), folder)
    return randomize(get_peft_model(base, _config(layer, fields)).eval())


def _close(found: Tensor, expected: Tensor) -> None:
    within_rounding(found.detach(), expected.detach(), torch.float32, 32)  # as of attention: four products in a chain


@pytest.mark.parametrize("first", ["adapter", "offload"])
@pytest.mark.parametrize(("offload", "layer", "fields"), CASES)
def test_an_offloaded_model_computes_what_the_plain_one_does(
    offload: str, layer: str, fields: str, first: str, tmp_path: Path
) -> None:
    plain, x = _plain(layer, fields), _inputs(layer)
    model = _offloaded(offload, layer, fields, first, tmp_path)
    with torch.no_grad():
        for _ in range(2):  # what was put off after the first forward is fetched again
            _close(model(x), plain(x))
        with model.disable_adapter():
            _close(model(x), _base(layer)(x))


@pytest.mark.parametrize("first", ["adapter", "offload"])
@pytest.mark.parametrize(("offload", "layer", "fields"), CASES)
def test_gradients_are_those_of_the_plain_model(
    offload: str, layer: str, fields: str, first: str, tmp_path: Path
) -> None:
    plain, x = _plain(layer, fields), _inputs(layer)
    model = _offloaded(offload, layer, fields, first, tmp_path)
    ours, theirs = (x.clone().requires_grad_(x.is_floating_point()) for _ in range(2))
    model(ours).square().sum().backward()
    plain(theirs).square().sum().backward()
    if x.is_floating_point():
        _close(ours.grad, theirs.grad)
    if first == "adapter" and not offload.startswith("group"):
        # accelerate puts parameters of an adapter that it offloads back on the meta device: no gradient to keep there.
        return
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    expected = {name: p.grad for name, p in plain.named_parameters() if p.requires_grad}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient is not None and found[name] is not None, name
        _close(found[name], gradient)


@pytest.mark.parametrize("first", ["adapter", "offload"])
@pytest.mark.parametrize(("offload", "layer", "fields"), CASES)
def test_merging_and_unmerging_act_on_what_is_offloaded(
    offload: str, layer: str, fields: str, first: str, tmp_path: Path
) -> None:
    plain, x = _plain(layer, fields), _inputs(layer)
    model = _offloaded(offload, layer, fields, first, tmp_path)
    with torch.no_grad():
        turned = plain(x)
        model.merge_adapter()
        _close(model(x), turned)
        _close(model(x), turned)
        model.unmerge_adapter()
        _close(model(x), turned)
        with model.disable_adapter():
            _close(model(x), _base(layer)(x))
        merged = model.merge_and_unload()
        _close(merged(x), turned)
        if not offload.startswith("group"):
            remove_hook_from_module(merged, recurse=True)
            _close(merged(x), turned)
