"""PEFT's verbs of conversion to LoRA on our layers: every kind with a LoRA form, errors, refusals with a reason."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import conversion
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import orthotune
from orthotune import OFTConfig, get_peft_model
from orthotune.errors import ConfigError, UnsupportedLayerError
from orthotune.rotation.low_rank import lora_factors
from tests.support.contract_cases import TRANSFORMS, randomize, seeded
from tests.support.layer_models import everything

#: float32 on both sides; outputs are of the order of 1
CLOSE = {"rtol": 0, "atol": 2e-5}


class Net(nn.Module):
    """A linear layer, a transposed one, and convolutions; uneven sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(12, 20)
        self.turned = Conv1D(8, 20)
        self.conv = nn.Conv2d(8, 6, 3, stride=2, padding=1)
        self.point = nn.Conv2d(6, 10, 1, bias=False)
        self.free = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.turned(self.wide(x).tanh())
        x = self.point(self.conv(x.mT.reshape(x.shape[0], 8, 3, -1)))
        return self.free(x.flatten(2).mT)


KINDS = ["wide", "turned", "conv", "point"]


def net() -> Net:
    with seeded(3):
        return Net().eval()


def adapted(**fields: Any) -> PeftModel:
    size = {} if "r" in fields else {"oft_block_size": 2}
    return randomize(get_peft_model(net(), OFTConfig(**size | {"target_modules": KINDS} | fields))).eval()


def inputs() -> Tensor:
    with seeded(5):
        return torch.randn(2, 9, 12)


@pytest.mark.parametrize("fields", [{}, {"side": "out"}, {"magnitude": True}], ids=["in", "out", "magnitude"])
def test_every_kind_with_a_lora_form_is_a_lora_of_full_rank(fields: dict[str, Any], tmp_path: Path) -> None:
    model = adapted(**fields)
    assert model.supports_lora_conversion()
    expected = model(inputs())
    peft.save_as_lora(tmp_path, model, rank=1000)  # no layer has that rank: each gets its largest
    lora = PeftModel.from_pretrained(net(), str(tmp_path)).eval()
    torch.testing.assert_close(lora(inputs()), expected, **CLOSE)
    assert torch.equal(model(inputs()), expected)
    errors = json.loads((tmp_path / "lora_errors.json").read_text())
    assert set(errors) == set(KINDS) and all(found["relative_error"] < 1e-5 for found in errors.values())


class Within(nn.Module):
    """A layer with the name of a layer inside of another module, and fewer outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.ModuleDict({"lin": nn.Linear(12, 20)})
        self.free = nn.Linear(20, 12)
        self.lin = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin(self.free(self.block["lin"](x).tanh()))


@pytest.mark.parametrize("targets", [["lin"], "lin"], ids=["both", "outer"])
def test_a_name_that_ends_as_another_one_keeps_its_own_rank(targets: Any, tmp_path: Path) -> None:
    with seeded(3):
        first, second = Within().eval(), Within().eval()
    second.load_state_dict(first.state_dict())
    model = randomize(get_peft_model(first, OFTConfig(oft_block_size=2, target_modules=targets))).eval()
    expected = model(inputs())
    peft.save_as_lora(tmp_path, model, rank=1000)
    lora = PeftModel.from_pretrained(second, str(tmp_path)).eval()
    torch.testing.assert_close(lora(inputs()), expected, **CLOSE)
    found = {name for name, module in lora.named_modules() if name.endswith(".lora_A")}
    assert len(found) == len(json.loads((tmp_path / "lora_errors.json").read_text()))


@pytest.mark.parametrize("transform", ["reflections", "psoft", "ether"])
def test_other_transforms(transform: str) -> None:
    model = adapted(**{"target_modules": ["wide", "turned"]} | TRANSFORMS[transform])
    expected = model(inputs())
    config, tensors = peft.convert_to_lora(model, rank=1.0)
    lora = get_peft_model(net(), config)
    peft.set_peft_model_state_dict(lora, tensors)
    torch.testing.assert_close(lora.eval()(inputs()), expected, **CLOSE)


def test_rank_by_error_as_peft_and_as_we_say_it() -> None:
    model = adapted()
    made = orthotune.as_lora(model, error=0.3)
    assert all(0 < layer.error <= 0.3 for layer in made.layers)
    # PEFT's float is the kept share of the squared singular values, 1 - 0.3 ** 2
    config, tensors = peft.convert_to_lora(model, rank=0.91)
    assert {name: t.shape for name, t in tensors.items()} == {name: t.shape for name, t in made.tensors.items()}
    assert config.rank_pattern == made.config.rank_pattern != {}
    # PEFT's own algorithm on the linear layer keeps as many singular values
    change = model.base_model.model.wide.get_delta_weight("default").detach()
    wanted = conversion._find_cutoff_index(torch.linalg.svdvals(change), 0.91)
    assert next(layer.rank for layer in made.layers if layer.layer == "wide") == wanted


def test_a_small_rank_has_the_error_that_is_told() -> None:
    model = adapted()
    made = orthotune.as_lora(model, rank=2)
    for layer in made.layers:
        down, up = (made.tensors[f"base_model.model.{layer.layer}.lora_{x}.weight"] for x in "AB")
        change = model.base_model.model.get_submodule(layer.layer).get_delta_weight("default").detach()
        change = change.mT if layer.layer == "turned" else change
        off = (change.flatten(1) - up.flatten(1) @ down.flatten(1)).norm() / change.norm()
        assert layer.rank == 2 and layer.error == pytest.approx(float(off), rel=1e-4)


def test_an_adapter_at_its_strength_beside_another_one(tmp_path: Path) -> None:
    model = adapted()
    model.add_adapter("other", OFTConfig(oft_block_size=2, target_modules=["wide", "free"]))
    randomize(model, adapter="other")
    model.set_adapter("other")
    orthotune.set_scale(model, "other", 0.5)
    expected = model(inputs())
    peft.save_as_lora(tmp_path, model, rank=64, adapter_name="other")
    assert {key.split(".")[2] for key in load_file(tmp_path / "adapter_model.safetensors")} == {"wide", "free"}
    lora = PeftModel.from_pretrained(net(), str(tmp_path)).eval()
    torch.testing.assert_close(lora(inputs()), expected, **CLOSE)


def test_a_merged_adapter_and_modules_saved_in_full(tmp_path: Path) -> None:
    model = adapted(modules_to_save=["free"])
    with torch.no_grad():
        model.base_model.model.free.modules_to_save["default"].weight.mul_(2)
    expected = model(inputs())
    model.merge_adapter()
    peft.save_as_lora(tmp_path, model, rank=64)
    lora = PeftModel.from_pretrained(net(), str(tmp_path)).eval()
    torch.testing.assert_close(lora(inputs()), expected, **CLOSE)


def test_verbs_that_were_imported_before_take_our_layers_too() -> None:
    model = adapted(target_modules=["wide", "conv"])
    model.add_adapter("other", OFTConfig(oft_block_size=2, target_modules=["free"]))
    orthotune.unregister()
    early = peft.convert_to_lora
    orthotune.register()
    assert early is not peft.convert_to_lora
    _, tensors = early(model, rank=3)
    assert len(tensors) == 4 and tensors["base_model.model.conv.lora_A.weight"].shape == (3, 8, 3, 3)
    with pytest.warns(UserWarning, match="layer 'attention'"), pytest.raises(TypeError, match="MultiheadAttention"):
        early(everything(), rank=3)


@pytest.mark.parametrize(("target", "reason"), [("embed", "an embedding"), ("attention", "several weights")])
def test_what_no_lora_can_hold_is_refused_with_the_reason(target: str, reason: str, tmp_path: Path) -> None:
    model = everything(target_modules=[target, "mix"])
    with pytest.warns(UserWarning, match=f"layer '{target}'.*{reason}"):
        assert not model.supports_lora_conversion()
    with pytest.raises(UnsupportedLayerError, match=f"layer '{target}' as LoRA.*{reason}"):
        peft.save_as_lora(tmp_path, model, rank=4)
    assert not list(tmp_path.iterdir())
    # with another adapter, which is not on that layer, the model is converted
    model.add_adapter("mix", OFTConfig(oft_block_size=2, target_modules=["mix"]))
    assert model.base_model.supports_lora_conversion("mix")
    assert len(peft.convert_to_lora(model, rank=4, adapter_name="mix")[1]) == 2


class Standardized(nn.Conv2d):
    """As in BiT: a change of the weight is no change of the output that is added."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight / self.weight.std(), self.bias)


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        (Standardized(6, 4, 3), "a Standardized, which computes with more"),
        (nn.ConvTranspose2d(6, 4, 3), "no transposed convolutions"),
        (nn.Conv2d(6, 4, 3, dilation=(2, 1)), r"dilation=\(2, 1\)"),
        (nn.Conv1d(6, 4, 3, padding=1, padding_mode="circular"), "padding_mode='circular'"),
        (nn.Conv1d(6, 4, 1, dilation=2), None),
        (nn.Conv1d(6, 4, 3, padding_mode="circular"), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
@pytest.mark.parametrize("conv", ["kernel", "channels"])
def test_convolutions_that_peft_makes_otherwise_are_refused(base: nn.Module, reason: str | None, conv: str) -> None:
    config = OFTConfig(oft_block_size=2, target_modules=["0"], conv=conv, init_weights=False)
    model = get_peft_model(nn.Sequential(copy.deepcopy(base)), config).eval()
    x = torch.ones(1, 6, *[7] * len(base.kernel_size)).cumsum(2)
    if reason is not None:
        with pytest.raises(UnsupportedLayerError, match=f"layer '0' as LoRA.*{reason}"):
            orthotune.as_lora(model, rank=4)
        return
    made = orthotune.as_lora(model, rank=100)
    lora = get_peft_model(nn.Sequential(copy.deepcopy(base)), made.config)
    peft.set_peft_model_state_dict(lora, made.tensors)
    torch.testing.assert_close(lora.eval()(x), model(x), rtol=0, atol=1e-4)  # inputs up to 7


@pytest.mark.parametrize(
    ("base", "holds"),
    [
        (nn.Conv2d(6, 4, 3, dilation=(2, 1)), True),
        (nn.Conv1d(6, 4, 3, padding=1, padding_mode="circular"), True),
        (nn.Conv2d(12, 4, 3, groups=2), False),
        (Standardized(6, 4, 3), False),
        (nn.ConvTranspose2d(6, 4, 3), False),
    ],
    ids=["dilation", "padding", "groups", "own-product", "transposed"],
)
def test_factors_that_are_added_to_the_weight_need_not_run_as_convolutions(base: nn.Module, holds: bool) -> None:
    """What ComfyUI and web UIs do with a LoRA: the layer itself runs, with another weight."""
    config = OFTConfig(oft_block_size=2, target_modules=["0"], conv="channels", init_weights=False)
    model = get_peft_model(nn.Sequential(copy.deepcopy(base)), config).eval()
    layer = model.base_model.model[0]
    assert (layer.no_lora_form(added=True) is None) == holds
    if not holds:
        return
    x = torch.ones(1, 6, *[7] * len(base.kernel_size)).cumsum(2)
    expected = model(x)
    merged = model.merge_and_unload()[0].weight
    down, up, _ = lora_factors((merged - base.weight).detach(), 100, None)
    with torch.no_grad():
        changed = copy.deepcopy(base)
        changed.weight += (up.flatten(1) @ down.flatten(1)).view_as(changed.weight)
    torch.testing.assert_close(changed(x), expected, rtol=0, atol=1e-4)  # inputs up to 7


def test_a_name_that_is_the_end_of_another_one() -> None:
    def nested() -> nn.Module:
        with seeded(3):
            return nn.Sequential(nn.Linear(4, 8), nn.Sequential(nn.Linear(8, 12)), nn.Sequential(nn.Linear(12, 6)))

    config = OFTConfig(oft_block_size=2, target_modules=r"0|1\.0", init_weights=False)
    model = get_peft_model(nested(), config).eval()
    made = orthotune.as_lora(model, rank=100)
    assert made.config.r == 8 and list(made.config.rank_pattern.values()) == [4]
    lora = get_peft_model(nested(), made.config)
    assert {name for name, module in lora.named_modules() if hasattr(module, "lora_A")} == {
        "base_model.model.0", "base_model.model.1.0"
    }  # fmt: skip
    peft.set_peft_model_state_dict(lora, made.tensors)
    x = torch.ones(3, 4)
    torch.testing.assert_close(lora.eval()(x), model(x), **CLOSE)


def test_grouped_convolutions_and_wrong_arguments() -> None:
    grouped = get_peft_model(nn.Sequential(nn.Conv2d(8, 8, 3, groups=2)), OFTConfig(r=2, target_modules=["0"]))
    with pytest.raises(TypeError, match="groups=2"):
        peft.convert_to_lora(grouped, rank=2)
    model = adapted()
    with pytest.raises(ConfigError, match="'nobody'.*default"):
        peft.convert_to_lora(model, rank=2, adapter_name="nobody")
    for rank in (0, 1.5, -3, True):
        with pytest.raises(ValueError, match="rank="):
            peft.convert_to_lora(model, rank=rank)
    with pytest.raises(ConfigError, match="bias='all'"):
        peft.convert_to_lora(adapted(bias="all"), rank=2)


def test_peft_alone_still_converts_its_own() -> None:
    model = peft.get_peft_model(net(), peft.LoraConfig(r=2, target_modules=["wide"], init_lora_weights=False))
    with pytest.warns(UserWarning, match="already a LoRA"):
        config, tensors = peft.convert_to_lora(model, rank=2)
    assert config.r == 2 and len(tensors) == 2
