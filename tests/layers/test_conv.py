"""What is special about convolutions."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from peft import PeftModel
from torch import Tensor, nn

from orthotune import OFTConfig, explain, get_peft_model, load_adapter
from orthotune.errors import BlockSizeError, ConfigError
from orthotune.kernels import rotate_patches
from orthotune.layers import conv
from tests.support.contract_cases import randomize, within_rounding
from tests.support.layer_models import linear
from tests.support.no_waiting import NoWaiting

#: every number of dimensions, stride, dilation, padding mode and groups, with the size of an image; channels are 12 in
#: and 8 out, of which two groups see 6 and make 4
CONVOLUTIONS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "1d": (nn.Conv1d(12, 8, 3, padding=1), (7,)),
    "1d_circular": (nn.Conv1d(12, 8, 4, 2, 3, padding_mode="circular"), (9,)),
    "1d_same": (nn.Conv1d(12, 8, 3, padding="same", dilation=2, bias=False), (9,)),
    "2d_stride": (nn.Conv2d(12, 8, (3, 2), (2, 1), (2, 1)), (7, 6)),
    "2d_replicate": (nn.Conv2d(12, 8, 3, padding=1, padding_mode="replicate"), (5, 4)),
    "2d_groups": (nn.Conv2d(12, 8, (3, 1), padding=(1, 0), groups=2), (5, 4)),
    "2d_point_groups": (nn.Conv2d(12, 8, 1, groups=2), (3, 4)),
    "3d_reflect": (nn.Conv3d(12, 8, (2, 1, 3), (1, 2, 1), (1, 0, 1), padding_mode="reflect"), (4, 3, 5)),
    "1d_transposed": (nn.ConvTranspose1d(12, 8, 4, stride=3, padding=1, output_padding=2), (5,)),
    "2d_transposed_groups": (nn.ConvTranspose2d(12, 8, (3, 2), 2, 1, 1, groups=2, dilation=(2, 1)), (4, 3)),
    "3d_transposed": (nn.ConvTranspose3d(12, 8, (2, 1, 3), bias=False), (2, 3, 2)),
}
#: what is rotated: the kernel, the input's channels, the output's, and one of them scaled; the last blocks are larger
#: than a group of two has outputs
LAYOUTS: dict[str, dict[str, Any]] = {
    "kernel": {"oft_block_size": 6},
    "channels": {"oft_block_size": 3, "conv": "channels"},
    "channels_scaled": {"r": 1, "conv": "channels", "magnitude": True, "block_share": True},
    "reflections": {"r": 2, "conv": "channels", "transform": "reflections"},
    "out": {"oft_block_size": 4, "side": "out"},
    "out_wide": {"oft_block_size": 8, "side": "out", "magnitude": True},
}


class Weighted(nn.Conv2d):
    """A subclass whose forward only it knows."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.weight.sum()


def test_a_forward_of_its_own_sees_the_turned_weight() -> None:
    model, x = linear(base=Weighted(4, 8, 3)), torch.randn(2, 4, 6, 6)
    turned = model(x)
    model.merge_adapter()
    torch.testing.assert_close(turned, model(x), rtol=0, atol=1e-4)  # float32, a sum of 288 weights


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        (nn.Conv2d(4, 8, 1), None),
        (nn.Conv2d(4, 8, (1, 3)), "convolutions"),
        (nn.Conv1d(4, 8, 1), "convolutions"),
        (nn.Conv3d(4, 8, 1), "convolutions"),
    ],
    ids=str,
)
def test_what_stock_peft_computes_alike(base: nn.Module, expected: str | None) -> None:
    assert linear(base=base).base_model.model.layer.beyond_peft == expected


def test_without_a_batch() -> None:
    model, x = linear(base=nn.Conv2d(4, 8, 3, padding=1)), torch.randn(4, 6, 5)
    torch.testing.assert_close(model(x), model(x[None])[0], rtol=0, atol=1e-5)


def test_every_group_turns_alike() -> None:
    model = linear(base=nn.Conv1d(8, 8, 1, groups=2, bias=False))
    x = torch.randn(1, 4, 5)
    layer = model.base_model.model.layer
    with torch.no_grad():
        layer.base_layer.weight[4:] = layer.base_layer.weight[:4]
    y = model(torch.cat([x, x], 1))
    assert torch.equal(y[:, :4], y[:, 4:])


@pytest.mark.parametrize("changes", [{}, {"stride": 2}, {"padding": 1, "padding_mode": "reflect"}, {"bias": False}])
def test_a_kernel_of_one_point_turns_its_input(changes: dict[str, Any]) -> None:
    """To the numbers of the turned weight, and without a gradient of the weight's size."""
    torch.manual_seed(0)
    x = torch.randn(2, 24, 5, 7, dtype=torch.float64)
    model = get_peft_model(
        nn.Sequential(nn.Conv2d(24, 10, 1, dtype=torch.float64, **changes)),
        OFTConfig(oft_block_size=8, target_modules=["0"], init_weights=False),
    )
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        kept: list[torch.Size] = []
        y = model(x)
    model.merge_adapter()
    torch.testing.assert_close(y, model(x))
    assert not any(shape[:2] == (10, 24) and shape != (10, 24, 1, 1) for shape in kept)


def _adapted(base: nn.Module, **fields: Any) -> Any:
    copied = copy.deepcopy(base).double()
    return randomize(get_peft_model(nn.Sequential(copied), OFTConfig(target_modules=["0"], **fields)))


def _layer(model: Any) -> Any:
    return model.base_model.model[0]


def _gradients(model: Any, x: Tensor) -> list[Tensor]:
    """The output, and the gradients of the input and of every trained number of a sum with uneven weights."""
    x = x.clone().requires_grad_()
    y = model(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape).sin()
    trained = [p for p in model.parameters() if p.requires_grad]
    return [y, *torch.autograd.grad((y * weights).sum(), [x, *trained])]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_signals_and_kernels_that_are_rotated_agree(name: str, layout: str) -> None:
    """Outputs and all gradients: as called, through the base with a rotated kernel, and merged."""
    base, size = CONVOLUTIONS[name]
    model, x = _adapted(base, **LAYOUTS[layout]), torch.randn(3, 12, *size, dtype=torch.float64)
    found = _gradients(model, x)
    handle = _layer(model).base_layer.register_forward_hook(lambda *_: None)
    assert "hooks" in explain(_layer(model), x)
    for one, other in zip(found, _gradients(model, x), strict=True):
        torch.testing.assert_close(one, other)
    handle.remove()
    before = _layer(model).base_layer.weight.clone()
    model.merge_adapter()
    torch.testing.assert_close(model(x), found[0])
    model.unmerge_adapter()
    assert torch.equal(_layer(model).base_layer.weight, before)


@pytest.mark.parametrize(
    ("name", "layout", "path"),
    [
        ("2d_stride", "kernel", "weight"),
        ("2d_stride", "channels", "input"),
        ("2d_stride", "channels_scaled", "sides"),
        ("2d_stride", "out", "sides"),
        ("2d_groups", "out", "sides"),
        ("2d_groups", "out_wide", "weight"),  # a block that mixes the outputs of two groups
        ("2d_point_groups", "kernel", "input"),  # one point: both layouts are one
        ("1d_transposed", "channels", "input"),
        ("1d_transposed", "kernel", "weight"),
    ],
)
def test_what_is_rotated(name: str, layout: str, path: str) -> None:
    model = _adapted(CONVOLUTIONS[name][0], **LAYOUTS[layout])
    assert explain(_layer(model)).startswith(f"plan: {path}: ")


@pytest.mark.parametrize("name", [name for name in CONVOLUTIONS if "transposed" not in name])
def test_patches_and_kernels_that_are_rotated_agree(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same map by patches, in tiles of a few rows: the output, and the gradients of input, rotation and kernel."""
    base, size = CONVOLUTIONS[name]
    for share in (False, True):
        model = _adapted(base, oft_block_size=2, block_share=share, magnitude=True)
        _layer(model).base_layer.weight.requires_grad_()
        x = torch.randn(3, 12, *size, dtype=torch.float64)
        monkeypatch.setattr(conv, "patches_are_rotated", lambda *_: False)
        expected = _gradients(model, x)
        monkeypatch.setattr(conv, "patches_are_rotated", lambda *_: True)
        monkeypatch.setattr(rotate_patches, "TILE", 12 * base.weight[0, 0].numel() * 5)
        path = "sides" if set(base.kernel_size) == {1} else "patches"
        assert explain(_layer(model), x).startswith(f"plan: {path}")
        for one, other in zip(_gradients(model, x), expected, strict=True):
            torch.testing.assert_close(one, other)
        torch.testing.assert_close(model(x[0]), expected[0][0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_adapter_on_few_patches_changes_no_bit(dtype: torch.dtype) -> None:
    base, x = nn.Conv2d(6, 40, 3, padding=1).to(dtype), torch.randn(1, 6, 5, 4).to(dtype)
    model = get_peft_model(nn.Sequential(base), OFTConfig(oft_block_size=6, target_modules=["0"]))
    assert explain(_layer(model), x).startswith("plan: patches")
    expected = base(x)
    assert torch.equal(model(x), expected) and torch.equal(model(x[0]), base(x[0]))
    model(x).float().square().sum().backward()
    assert _layer(model).oft_R["default"].weight.grad.any()


@pytest.mark.parametrize("way", ["patches", "as chosen"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_step_waits_for_no_device(name: str, layout: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device without numbers, which takes the path of a GPU; the rotation of patches also where it is no gain."""
    base, size = CONVOLUTIONS[name]
    if way == "patches":
        monkeypatch.setattr(conv, "patches_are_rotated", lambda *_: True)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)  # torch has no autocast for this device
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    model, x = _adapted(base, **LAYOUTS[layout]).train(), torch.randn(3, 12, *size, dtype=torch.float64)
    model(x).sum().backward()  # the first step alone looks whether gradients came
    model, x = model.to("meta"), x.to("meta").requires_grad_()
    with NoWaiting():
        model(x).sum().backward()


def test_few_patches_are_rotated() -> None:
    """Fewer of them than outputs; their second derivatives are there, and a transform of functions sees the kernel."""
    model, x = _adapted(nn.Conv2d(2, 10, 2, bias=False), oft_block_size=4), torch.randn(1, 2, 3, 3, dtype=torch.float64)
    layer = _layer(model)
    assert explain(layer, x).startswith("plan: patches") and explain(layer, x[0]).startswith("plan: patches")
    assert explain(layer, torch.cat([x, x])).startswith("plan: weight")
    R = layer.oft_R["default"]().detach().requires_grad_()
    shape = rotate_patches.Geometry((2, 2), (1, 1), (1, 1), 1)
    given = (x.requires_grad_(), layer.base_layer.weight[:3].detach().requires_grad_(), R)
    assert torch.autograd.gradcheck(lambda *one: rotate_patches.convolve_patches(*one, shape), given)
    assert torch.autograd.gradgradcheck(lambda *one: rotate_patches.convolve_patches(*one, shape), given)
    torch.testing.assert_close(torch.func.vmap(model)(x[None])[0], model(x))


def test_a_training_step_in_float32_rotates_more_patches() -> None:
    model, x = _adapted(nn.Conv2d(2, 10, 2, bias=False), oft_block_size=4).float(), torch.randn(2, 2, 3, 3)
    layer = _layer(model)
    assert explain(layer.train(), x).startswith("plan: patches")
    assert explain(layer, torch.cat([x] * 9)).startswith("plan: weight")
    assert explain(layer.eval(), x).startswith("plan: weight")  # no gradient of the kernel's size follows
    # Measured in float32 alone.
    assert explain(layer.train(), x.double()).startswith("plan: weight")
    with torch.autocast("cpu", torch.bfloat16):
        assert explain(layer, x).startswith("plan: weight")


@pytest.mark.parametrize("way", [True, False], ids=["reentrant", "not reentrant"])
def test_a_repeated_forward_rotates_patches_too(way: bool) -> None:
    model, x = _adapted(nn.Conv2d(2, 10, 2, bias=False), oft_block_size=4).float().train(), torch.randn(2, 2, 3, 3)
    plain, repeated = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = model(plain)
    found = torch.utils.checkpoint.checkpoint(model, repeated, use_reentrant=way)
    for one, start in ((expected, plain), (found, repeated)):
        model.zero_grad()
        one.square().sum().backward()
        start.of_rotation = _layer(model).oft_R["default"].weight.grad.clone()
    assert torch.equal(found, expected) and torch.equal(plain.grad, repeated.grad)
    assert torch.equal(plain.of_rotation, repeated.of_rotation)


def test_an_image_that_is_smaller_than_the_kernel_is_refused() -> None:
    model, x = _adapted(nn.Conv2d(2, 10, 3), oft_block_size=6), torch.randn(1, 2, 2, 3, dtype=torch.float64)
    assert explain(_layer(model), x).startswith("plan: patches")
    with pytest.raises(RuntimeError, match="Kernel size can't be greater"):
        model(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_patches_round_as_a_rotated_input_does(dtype: torch.dtype) -> None:
    """Also under autocast: the patch, the rotation and the product are each rounded once."""
    wide = _adapted(nn.Conv2d(4, 40, 3), oft_block_size=6)
    x = torch.randn(1, 4, 6, 6)
    with torch.no_grad():
        expected = wide(x.double())
        found = copy.deepcopy(wide).to(dtype)(x.to(dtype))
        with torch.autocast("cpu", torch.bfloat16):
            cast = copy.deepcopy(wide).float()(x)
    within_rounding(found, expected, dtype, 4)
    assert cast.dtype is torch.bfloat16
    within_rounding(cast, expected, torch.bfloat16, 4)


@pytest.mark.parametrize("layout", ["channels", "out"])
def test_rotated_signals_have_no_gradient_of_a_weight(layout: str) -> None:
    """Nothing of the kernel's size is kept for the backward but the kernel itself."""
    base, size = CONVOLUTIONS["2d_stride"]
    kept: list[Tensor] = []
    model = _adapted(base, **LAYOUTS[layout])
    frozen = _layer(model).base_layer.weight
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        model(torch.randn(2, 12, *size, dtype=torch.float64, requires_grad=True))
    assert {t.data_ptr() for t in kept if t.numel() == frozen.numel()} == {frozen.data_ptr()}


def test_large_signals_rotate_the_kernel() -> None:
    """Few channels under many pixels, where the kernel is less work; the numbers are those of the rotated signal."""
    model = _adapted(nn.Conv2d(4, 4, 2), oft_block_size=4, conv="channels")
    few, many = (torch.randn(1, 4, size, size, dtype=torch.float64) for size in (3, 40))
    with torch.no_grad():
        assert [explain(_layer(model), x).split(":")[1].strip() for x in (few, many)] == ["input", "weight"]
        found = model.eval()(many)
    torch.testing.assert_close(found, model(many))


def test_channels_of_a_depthwise_convolution() -> None:
    """Each group has one channel, which cannot be rotated."""
    with pytest.raises(BlockSizeError, match="layer '0'"):
        _adapted(nn.Conv2d(8, 8, 3, groups=8), oft_block_size=4, conv="channels")


def test_channels_of_the_input_have_no_meaning_for_outputs() -> None:
    with pytest.raises(ConfigError, match="side='out'"):
        OFTConfig(side="out", conv="channels")


def test_the_layout_is_saved(tmp_path: Path) -> None:
    base, size = CONVOLUTIONS["2d_groups"]
    model, x = _adapted(base, **LAYOUTS["channels"]), torch.randn(2, 12, *size, dtype=torch.float64)
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (saved["conv"], saved["peft_type"]) == ("channels", "ORTHOTUNE")
    for load in (PeftModel.from_pretrained, lambda *given: load_adapter(*given)[0]):
        loaded = load(nn.Sequential(copy.deepcopy(base).double()), tmp_path)
        assert torch.equal(loaded(x), model.eval()(x))


def test_rows_under_several_layouts() -> None:
    """A mixed batch: each row as under its own adapter alone."""
    base, size = CONVOLUTIONS["2d_replicate"]
    model, x = _adapted(base, **LAYOUTS["channels"]), torch.randn(4, 12, *size, dtype=torch.float64)
    for name, layout in (("kernel", "kernel"), ("out", "out_wide")):
        model.add_adapter(name, OFTConfig(target_modules=["0"], **LAYOUTS[layout]))
        randomize(model, seed=len(name), adapter=name)
    names = ["out", "default", "__base__", "kernel"]
    with torch.no_grad():
        found = model.eval()(x, adapter_names=names)
        for row, name in enumerate(names):
            with contextlib.nullcontext() if name != "__base__" else model.disable_adapter():
                model.set_adapter(name if name != "__base__" else "default")
                torch.testing.assert_close(found[row], model(x[row : row + 1])[0])


def test_several_layouts_at_once() -> None:
    """Adapters of every layout active together are the merged weight, in the order in which they act."""
    base, size = CONVOLUTIONS["2d_stride"]
    model, x = _adapted(base, **LAYOUTS["channels"]), torch.randn(2, 12, *size, dtype=torch.float64)
    model.add_adapter("out", OFTConfig(target_modules=["0"], **LAYOUTS["out_wide"]))
    model.add_adapter("kernel", OFTConfig(target_modules=["0"], **LAYOUTS["kernel"]))
    for seed, name in enumerate(("out", "kernel")):
        randomize(model, seed=seed, adapter=name)
    for names in (["out", "default"], ["kernel", "default", "out"]):
        model.base_model.set_adapter(names)
        found = model(x)
        model.merge_adapter(names)
        torch.testing.assert_close(model(x), found)
        model.unmerge_adapter()


def test_the_size_that_a_transposed_convolution_is_asked_for() -> None:
    base = nn.ConvTranspose2d(12, 8, 3, stride=2)
    model = _adapted(base, **LAYOUTS["out"])
    x = torch.randn(1, 12, 3, 3, dtype=torch.float64)
    for size in ((7, 7), (8, 7)):
        found = _layer(model)(x, output_size=size)
        assert found.shape[2:] == size
        model.merge_adapter()
        torch.testing.assert_close(_layer(model)(x, output_size=size), found)
        model.unmerge_adapter()
