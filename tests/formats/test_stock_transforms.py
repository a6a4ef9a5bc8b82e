"""Files of PEFT's HRA, BOFT, RoAd and PSOFT: the same output here and there, trained here, written back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftModel
from peft.tuners.boft import layer as boft_layer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import orthotune
from orthotune.errors import AdapterFileError, ConfigError, UnsupportedLayerError
from orthotune.operations.checkpoint.tensor_tree import module_tree
from orthotune.operations.checkpoint.weight_merge import merge_weight
from orthotune.operations.hotswap import hotswap_adapter

TARGETS = ["0", "2"]


class BlockDiagonal:
    """PEFT's kernel for block-diagonal matrices in torch: without its CUDA extension, PEFT makes every butterfly one
    stage."""

    @staticmethod
    def forward(blocks: Tensor) -> list[Tensor]:
        return [torch.stack([torch.block_diag(*stage) for stage in blocks])]


CONFIGS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "hra": (peft.HRAConfig, {"r": 4}),
    "hra-orthogonal": (peft.HRAConfig, {"r": 3, "apply_GS": True}),
    "boft": (peft.BOFTConfig, {"boft_block_size": 2, "boft_n_butterfly_factor": 2}),
    "road-1": (peft.RoadConfig, {"variant": "road_1", "group_size": 4}),
    "road-2": (peft.RoadConfig, {"variant": "road_2", "group_size": 8}),
    "road-4": (peft.RoadConfig, {"variant": "road_4", "group_size": 4}),
    "psoft": (peft.PsoftConfig, {"r": 5}),
    "psoft-rotation": (peft.PsoftConfig, {"r": 5, "psoft_mag_a": False, "psoft_mag_b": False}),
}


@dataclass(frozen=True)
class Stock:
    """A folder of stock PEFT, and what its model gave."""

    folder: Path
    output: Tensor

    def base(self, bias: bool | None = None) -> nn.Sequential:
        """The base that it was trained on; RoAd maps biases, too, so that its base has none."""
        bias = "road" not in self.folder.name if bias is None else bias
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            return nn.Sequential(nn.Linear(12, 16, bias=bias), nn.Tanh(), nn.Linear(16, 8, bias=bias))


def _x() -> Tensor:
    return torch.randn(3, 12, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Stock]]:
    """What stock PEFT writes for each config, with noise in every trained number."""
    orthotune.unregister()
    boft_layer._FBD_CUDA = BlockDiagonal
    made = {}
    try:
        for name, (config, fields) in CONFIGS.items():
            made[name] = Stock(tmp_path_factory.mktemp(name), torch.zeros(0))
            model = peft.get_peft_model(made[name].base(), config(target_modules=TARGETS, init_weights=False, **fields))
            generator = torch.Generator().manual_seed(2)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
                made[name] = Stock(made[name].folder, model(_x()))
            model.save_pretrained(made[name].folder)
    finally:
        orthotune.register()
    yield made
    boft_layer._FBD_CUDA = None


def _close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=2e-6)  # float32, outputs of about 1


@pytest.mark.parametrize("name", CONFIGS)
def test_both_directions(name: str, stock: dict[str, Stock], tmp_path: Path) -> None:
    held = stock[name]
    model, report = orthotune.load_adapter(held.base(), held.folder)
    assert report.format == f"peft-{name.partition('-')[0]}" and not report.frozen and len(report.matched) == 2
    _close(model(_x()), held.output)
    model(_x()).square().sum().backward()
    rotations = [p for key, p in model.named_parameters() if "oft_R" in key]
    assert rotations and all(p.grad is not None and p.grad.any() for p in rotations)

    model.save_pretrained(tmp_path / "ours")
    again = PeftModel.from_pretrained(held.base(), tmp_path / "ours")
    _close(again(_x()), held.output)
    assert {row["transform"] for row in orthotune.inspect(tmp_path / "ours")["layers"]} == {
        again.peft_config["default"].transform
    }
    orthotune.convert(tmp_path / "ours", tmp_path / "back", report.format, linear=True)
    orthotune.unregister()
    try:
        _close(PeftModel.from_pretrained(held.base(), tmp_path / "back")(_x()), held.output)
    finally:
        orthotune.register()
    # its tensors are those that PEFT wrote, in name, shape and number
    written, first = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "back", held.folder))
    assert written.keys() == first.keys()
    for key, tensor in first.items():
        found = written[key]
        # the part of boft_R that is not skew acts on nothing; a scale of 1.3 is stored as 0.3 and rounds once
        skew = (lambda A: A - A.mT) if "boft_R" in key else (lambda A: A)
        torch.testing.assert_close(skew(found), skew(tensor), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["hra", "boft", "road-1", "psoft"])
def test_a_config_of_peft_gets_our_layers(name: str, stock: dict[str, Stock]) -> None:
    config, fields = CONFIGS[name]
    model = orthotune.get_peft_model(stock[name].base(), config(target_modules=TARGETS, **fields))
    wanted = load_file(stock[name].folder / "adapter_model.safetensors")
    rotations = model.base_model.model[0].rotations("default")
    assert type(model.base_model).__name__ == "OFTModel" and rotations[""].weight.numel() <= sum(
        t.numel() for t in wanted.values()
    )
    # pairs of equal reflections cancel to rounding, all others start exactly
    torch.testing.assert_close(model(_x()), stock[name].base()(_x()), rtol=0, atol=1e-6)


def test_what_a_config_asks_beyond_our_layers_is_refused(stock: dict[str, Stock]) -> None:
    for config, words in (
        (peft.BOFTConfig(boft_dropout=0.1, target_modules=TARGETS), "boft_dropout"),
        (peft.PsoftConfig(psoft_mag_a=False, target_modules=TARGETS), "both scales"),
        (peft.PsoftConfig(ab_svd_init="pissa_init", target_modules=TARGETS), "ab_svd_init"),
        (peft.HRAConfig(r=3, target_modules=TARGETS), "odd number"),
    ):
        with pytest.raises(ConfigError, match=words):
            orthotune.get_peft_model(stock["hra"].base(), config)


def _without_scales(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    for key in [key for key in tensors if "alpha" in key]:
        del tensors[key]


def _cut_triangle(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    tensors.update({key: tensor[:-1] for key, tensor in tensors.items() if "weight" in key})


def _sketch(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    config["psoft_svd"] = "lowrank"


def _zero(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    next(iter(tensors.values()))[:, 1] = 0


def _cut(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    key = next(k for k in tensors if k.endswith("road_alpha"))
    tensors[key] = tensors[key][:-1]


def _nan(tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    next(iter(tensors.values())).view(-1)[0] = torch.nan


BROKEN: dict[str, tuple[str, Callable[[dict[str, Tensor], dict[str, Any]], Any], str]] = {
    "a vector of length 0": ("hra", _zero, "vectors of length 0"),
    "not finite": ("hra", _nan, "NaN"),
    "another method": ("hra", lambda tensors, config: config.update(peft_type="LORA"), "peft_type 'HRA'"),
    "angles without scales": ("road-2", _without_scales, "road_alpha"),
    "fewer scales": ("road-2", _cut, "as many scales as angles"),
    "no such variant": ("road-2", lambda tensors, config: config.update(variant="road_3"), "variant='road_3'"),
    "odd groups": ("road-2", lambda tensors, config: config.update(group_size=5), "even divisor"),
    "a group that is no number": ("road-2", lambda tensors, config: config.update(group_size="x"), "group_size"),
    "a sketch of the weight": ("psoft", _sketch, "psoft_svd='lowrank'"),
    "a free matrix": ("psoft", lambda tensors, config: config.update(psoft_orth=False), "psoft_orth"),
    "a cut triangle": ("psoft", _cut_triangle, "subspace"),
}  # fmt: skip


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_file_is_refused_in_words(fault: str, stock: dict[str, Stock], tmp_path: Path) -> None:
    name, change, words = BROKEN[fault]
    tensors = load_file(stock[name].folder / "adapter_model.safetensors")
    config = json.loads((stock[name].folder / "adapter_config.json").read_text())
    change(tensors, config)
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterFileError, match=words):
        orthotune.load_adapter(stock[name].base(), tmp_path)


def test_what_does_not_fit_the_model_is_refused_by_name(stock: dict[str, Stock], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedLayerError, match=r"layer '0'.*a bias"):
        orthotune.load_adapter(stock["road-1"].base(bias=True), stock["road-1"].folder)
    other = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 8))
    with pytest.raises(AdapterFileError, match=r"layer '0'.*shape \(4, 12\).*\(4, 10\)"):
        orthotune.load_adapter(other, stock["hra"].folder)
    narrow = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(16, 8))
    with pytest.raises(AdapterFileError, match=r"scale of the rows.*16 values.*10"):
        orthotune.load_adapter(narrow, stock["boft"].folder)
    model, _ = orthotune.load_adapter(stock["hra"].base(), stock["hra"].folder)
    model.save_pretrained(tmp_path / "ours")
    for target in ("peft", "kohya-boft", "peft-road", "lycoris"):
        out = tmp_path / (target if target.startswith("peft") else f"{target}.safetensors")
        with pytest.raises(UnsupportedLayerError, match="reflections|inputs"):
            orthotune.convert(tmp_path / "ours", out, target)
        assert not out.exists()


@torch.no_grad()
def test_a_merge_without_the_model_computes_the_basis_that_the_file_lacks(stock: dict[str, Stock]) -> None:
    held = stock["psoft"]
    wanted, _ = orthotune.load_adapter(held.base(), held.folder)
    layer = wanted.base_model.model[0]
    layer.merge()
    with torch.device("meta"):
        empty = held.base()
    found, _ = orthotune.load_adapter(empty, held.folder)
    weight = held.base()[0].weight.detach().clone()
    merge_weight(found.base_model.model[0], "weight", weight, "default")
    torch.testing.assert_close(weight, layer.get_base_layer().weight, rtol=0, atol=1e-6)  # float32, weights below 1


def test_a_bias_that_only_the_files_of_the_base_show_is_refused(stock: dict[str, Stock]) -> None:
    tree = module_tree({"0.weight": (16, 12), "0.bias": (16,), "2.weight": (8, 16)})
    with pytest.raises(UnsupportedLayerError, match="a bias"):
        orthotune.load_adapter(tree, stock["road-1"].folder)


def test_a_bias_is_refused_in_place_of_other_numbers(stock: dict[str, Stock]) -> None:
    fields = {"transform": "planes", "variant": "road_1", "side": "out", "oft_block_size": 4}
    model = orthotune.get_peft_model(
        stock["road-1"].base(bias=True), orthotune.OFTConfig(target_modules=TARGETS, **fields)
    )
    with pytest.raises(UnsupportedLayerError, match="a bias"):
        hotswap_adapter(model, stock["road-1"].folder)


def test_a_conversion_of_road_says_what_it_assumes_of_biases(stock: dict[str, Stock], tmp_path: Path) -> None:
    done = orthotune.convert(stock["road-1"].folder, tmp_path / "ours", "orthotune", linear=True)
    assert done.plan is not None and any("without a bias" in note for note in done.plan.notes)


def test_an_odd_number_of_reflections_loads_after_a_conversion(stock: dict[str, Stock], tmp_path: Path) -> None:
    held = stock["hra-orthogonal"]
    orthotune.convert(held.folder, tmp_path / "ours", "orthotune", linear=True)
    _close(PeftModel.from_pretrained(held.base(), tmp_path / "ours")(_x()), held.output)
