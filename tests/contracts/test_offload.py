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

from orthotune import OFTConfig, get_peft_model
from tests.support.contract_cases import randomize, seeded, within_rounding
from tests.support.contract_layers import KINDS, Inputs

CPU = torch.device("cpu")
#: attention reads the weight of the layer inside it past that layer's hook, adapted or not
WHOLE = ["MultiheadAttention"]


class Chain(nn.Module):
    """A module of one kind before a layer that is not adapted, so that there is a device to offload from and to."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer, self.after = KINDS[kind].build(), nn.Linear(WIDTHS[kind], 5)
        self.channels_first = kind.startswith("conv")

    def forward(self, *inputs: Tensor) -> Tensor:
        found = self.layer(*inputs)
        return self.after(found.movedim(1, -1) if self.channels_first else found)


#: kind -> width of its outputs
WIDTHS = {
    "linear_rank3": 20, "conv1d_circular": 8, "conv2d": 8, "conv2d_1x1": 12, "embedding": 12, "transposed_linear": 20,
    "attention": 8, "experts": 8, "mixtral_experts": 8,
}  # fmt: skip
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
FEW = {
    "disk": ("linear_rank3", "attention", "mixtral_experts"),
    "group-block": ("linear_rank3", "conv2d", "embedding", "attention", "experts"),
}
SOME = ("linear_rank3", "conv2d", "embedding")
CASES = [
    (offload, kind, fields)
    for offload in OFFLOADS
    for kind in WIDTHS
    for fields in FIELDS
    if kind in FEW.get(offload, WIDTHS)
    and (fields == "in" or (kind in SOME and offload not in FEW))
    and (kind, fields) != ("embedding", "out")
]


def _base(kind: str) -> nn.Module:
    with seeded(1):
        return Chain(kind).eval().requires_grad_(False)


def _inputs(kind: str) -> Inputs:
    with seeded(2):
        return KINDS[kind].inputs()


def _config(kind: str, fields: str) -> OFTConfig:
    targets = dict(KINDS[kind].targets)
    if targets["target_modules"]:
        targets["target_modules"] = [f"layer.{name}" for name in targets["target_modules"]]
    else:
        targets["target_parameters"] = [f"layer.{name}" for name in targets["target_parameters"]]
    return OFTConfig(**{"oft_block_size": 4} | targets | FIELDS[fields])


def _plain(kind: str, fields: str) -> Any:
    return randomize(get_peft_model(_base(kind), _config(kind, fields)).eval())


def _offloaded(offload: str, kind: str, fields: str, first: str, folder: Path) -> Any:
    if first == "adapter":
        tuned = _plain(kind, fields)
        OFFLOADS[offload](tuned.base_model.model, folder)
        return tuned
    base = OFFLOADS[offload](_base(kind), folder)
    return randomize(get_peft_model(base, _config(kind, fields)).eval())


def _close(found: Tensor, expected: Tensor) -> None:
    within_rounding(found.detach(), expected.detach(), torch.float32, 32)  # as of attention: four products in a chain


@pytest.mark.parametrize("first", ["adapter", "offload"])
@pytest.mark.parametrize(("offload", "kind", "fields"), CASES)
def test_an_offloaded_model_computes_what_the_plain_one_does(
    offload: str, kind: str, fields: str, first: str, tmp_path: Path
) -> None:
    plain, x = _plain(kind, fields), _inputs(kind)
    model = _offloaded(offload, kind, fields, first, tmp_path)
    with torch.no_grad():
        for _ in range(2):  # what was put off after the first forward is fetched again
            _close(model(*x), plain(*x))
        with model.disable_adapter():
            _close(model(*x), _base(kind)(*x))


@pytest.mark.parametrize("first", ["adapter", "offload"])
@pytest.mark.parametrize(("offload", "kind", "fields"), CASES)
def test_gradients_are_those_of_the_plain_model(
    offload: str, kind: str, fields: str, first: str, tmp_path: Path
) -> None:
    plain, x = _plain(kind, fields), _inputs(kind)
    model = _offloaded(offload, kind, fields, first, tmp_path)
    ours, theirs = (tuple(one.clone().requires_grad_(one.is_floating_point()) for one in x) for _ in range(2))
    model(*ours).square().sum().backward()
    plain(*theirs).square().sum().backward()
    for one, other in zip(ours, theirs, strict=True):
        if one.is_floating_point():
            _close(one.grad, other.grad)
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
@pytest.mark.parametrize(("offload", "kind", "fields"), CASES)
def test_merging_and_unmerging_act_on_what_is_offloaded(
    offload: str, kind: str, fields: str, first: str, tmp_path: Path
) -> None:
    plain, x = _plain(kind, fields), _inputs(kind)
    model = _offloaded(offload, kind, fields, first, tmp_path)
    with torch.no_grad():
        turned = plain(*x)
        model.merge_adapter()
        _close(model(*x), turned)
        _close(model(*x), turned)
        model.unmerge_adapter()
        _close(model(*x), turned)
        with model.disable_adapter():
            _close(model(*x), _base(kind)(*x))
        merged = model.merge_and_unload()
        _close(merged(*x), turned)
        if not offload.startswith("group"):
            remove_hook_from_module(merged, recurse=True)
            _close(merged(*x), turned)
