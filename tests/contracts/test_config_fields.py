"""Every field of the config turns something that can be seen, or is refused aloud.

A new field fails here until it has a demonstration below.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, PeftModelForCausalLM
from torch import Tensor, nn

from orthotune import OFTConfig, get_peft_model
from orthotune.errors import BlockSizeError, ConfigError
from tests.support.contract_cases import randomize, rotation_parameters
from tests.support.contract_layers import Experts, Net


class Tower(nn.Module):
    """Two layers of two projections, and a head."""

    def __init__(self) -> None:
        super().__init__()
        pairs = [nn.ModuleDict({"up": nn.Linear(12, 24), "down": nn.Linear(24, 12)}) for _ in range(2)]
        self.body = nn.ModuleDict({"layers": nn.ModuleList(pairs)})
        self.head = nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.body["layers"]:
            x = layer["down"](layer["up"](x).tanh())
        return self.head(x)

    def prepare_inputs_for_generation(self, *_: Any) -> None:
        """PEFT asks a causal language model for it."""


def _model(build: Callable[[], nn.Module] = Tower, **fields: Any) -> PeftModel:
    if "target_parameters" not in fields:
        fields = {"target_modules": ["up", "down"]} | fields
    if not {"r", "oft_block_size"} & fields.keys() and fields.get("transform") not in ("hra", "psoft"):
        fields["oft_block_size"] = 4
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return get_peft_model(build(), OFTConfig(**fields)).eval()


def _output(model: PeftModel) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return model(torch.randn(5, 12)).detach()


def _trained(**fields: Any) -> Tensor:
    return _output(randomize(_model(**fields)))


def _changes(*, given: dict[str, Any] | None = None, **fields: Any) -> None:
    """The same stored numbers give another output under ``fields`` than without them."""
    given = given or {}
    plain, changed = _trained(**given), _trained(**given, **fields)
    assert (plain - changed).abs().max() > 1e-3


def _shapes(**fields: Any) -> dict[str, tuple[int, ...]]:
    found = rotation_parameters(_model(**fields))
    return {name.split(".oft_R")[0].removeprefix("base_model.model."): tuple(p.shape) for name, p in found.items()}


def _saved(folder: Path, **fields: Any) -> dict[str, Any]:
    _model(**fields).save_pretrained(folder)
    return json.loads((folder / "adapter_config.json").read_text())


def _trainable(**fields: Any) -> set[str]:
    names = [name for name, p in _model(**fields).named_parameters() if p.requires_grad]
    return {name.removeprefix("base_model.model.") for name in names}


DEMONSTRATIONS: dict[str, Callable[[Path], None]] = {}


def shows(field: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Puts a demonstration of ``field`` into the table."""

    def put(demonstration: Callable[[Path], None]) -> Callable[[Path], None]:
        DEMONSTRATIONS[field] = demonstration
        return demonstration

    return put


@shows("transform")
def _(folder: Path) -> None:
    assert _shapes(transform="hra", r=4)["body.layers.0.up"] == (4, 12)
    for wrong, words in (
        ({"coft": True}, "coft"),
        ({"oft_block_size": 4}, "no blocks"),
        ({"block_share": True}, "share"),
    ):
        with pytest.raises(ConfigError, match=words):
            OFTConfig(transform="reflections", **wrong)
    with pytest.raises(ConfigError, match="Did you mean reflections"):
        OFTConfig(transform="reflection")
    with pytest.raises(ConfigError, match="never the identity"):
        _model(transform="hra", r=3)
    with pytest.raises(BlockSizeError, match="12 features"):
        _model(transform="hra", r=14)


@shows("variant")
def _(folder: Path) -> None:
    assert _shapes(transform="planes", variant="road_2")["body.layers.0.up"] == (2, 12)
    assert _shapes(transform="road")["body.layers.0.up"] == (2, 12)  # outputs, one number for two of them
    for fields in ({"variant": "road_1"}, {"transform": "planes", "variant": "road_3"}):
        with pytest.raises(ConfigError, match="variant"):
            OFTConfig(**fields)
    with pytest.raises(ConfigError, match="a reflection is never the identity"):
        _model(transform="hyperplane", variant="ether")


@shows("factors")
def _(folder: Path) -> None:
    assert _shapes(transform="butterfly", oft_block_size=2, factors=2)["body.layers.0.up"] == (12, 1)
    assert _saved(folder, transform="boft", oft_block_size=2)["factors"] == 2
    for fields in ({"factors": 2}, {"transform": "hra", "factors": 2}, {"transform": "butterfly", "factors": 31}):
        with pytest.raises(ConfigError, match="factors"):
            OFTConfig(**fields)
    with pytest.raises(BlockSizeError, match="3 stages.*12 features"):
        _model(transform="butterfly", oft_block_size=4, factors=3)


@shows("task_type")
def _(folder: Path) -> None:
    assert isinstance(_model(task_type="CAUSAL_LM"), PeftModelForCausalLM)
    with pytest.raises(ValueError, match="Invalid task type: 'BAKING'"):
        OFTConfig(task_type="BAKING")


@shows("peft_type")
def _(folder: Path) -> None:
    # It marks a config as stored: the size in a file was chosen for a model long ago and follows PEFT's rule.
    assert OFTConfig(oft_block_size=5, peft_type="OFT").block_size_fallback == "nearest"
    assert OFTConfig(oft_block_size=5).block_size_fallback == "error"


@shows("auto_mapping")
def _(folder: Path) -> None:
    assert _saved(folder)["auto_mapping"]["base_model_class"] == "Tower"


@shows("peft_version")
def _(folder: Path) -> None:
    stored = {"peft_type": "OFT", "use_cayley_neumann": True}
    old, new = (_trained(**stored, peft_version=version) for version in ("0.17.1", "0.18.0"))
    assert (old - new).abs().max() > 1e-4


@shows("base_model_name_or_path")
def _(folder: Path) -> None:
    # PEFT's host writes the name of the model that is adapted; a config on its own keeps what it was given.
    OFTConfig(base_model_name_or_path="some/base").save_pretrained(str(folder))
    assert OFTConfig.from_pretrained(str(folder)).base_model_name_or_path == "some/base"


@shows("revision")
def _(folder: Path) -> None:
    assert _saved(folder, revision="v2")["revision"] == "v2"


@shows("inference_mode")
def _(folder: Path) -> None:
    assert _trainable() and not _trainable(inference_mode=True)


@shows("r")
def _(folder: Path) -> None:
    shapes = _shapes(r=6)
    assert (shapes["body.layers.0.up"], shapes["body.layers.0.down"]) == ((6, 1), (6, 6))


@shows("oft_block_size")
def _(folder: Path) -> None:
    assert set(_shapes(oft_block_size=6).values()) == {(2, 15), (4, 15)}


@shows("module_dropout")
def _(folder: Path) -> None:
    model = randomize(_model(module_dropout=0.5)).train()
    outputs = [model(torch.ones(1, 12)) for _ in range(8)]
    assert len({round(y.sum().item(), 5) for y in outputs}) > 1
    assert torch.equal(_output(model.eval()), _trained())


@shows("target_modules")
def _(folder: Path) -> None:
    assert _shapes(target_modules=["up"]).keys() == {"body.layers.0.up", "body.layers.1.up"}
    assert _shapes(target_modules=r".*\.1\.(up|down)").keys() == {"body.layers.1.up", "body.layers.1.down"}
    assert len(_shapes(target_modules="all-linear")) == 5


@shows("fan_in_fan_out")
def _(folder: Path) -> None:
    # (experts, in, out) = (3, 12, 8): the inputs are 12 wide with it, 8 without
    fields = {"build": lambda: Net(Experts(True)), "target_parameters": ["layer.weight"]}
    assert _shapes(**fields, fan_in_fan_out=True) == {"layer": (9, 6)}
    assert _shapes(**fields) == {"layer": (6, 6)}


@shows("bias")
def _(folder: Path) -> None:
    assert not any(name.endswith("bias") for name in _trainable())
    assert {n for n in _trainable(bias="all") if n.endswith("bias")} > {
        n for n in _trainable(bias="oft_only") if n.endswith("bias")
    }
    with pytest.raises(ConfigError, match="bias='lora_only'. Needed: one of 'none', 'all', 'oft_only'"):
        OFTConfig(bias="lora_only")


@shows("exclude_modules")
def _(folder: Path) -> None:
    assert _shapes(exclude_modules=["down"]).keys() == {"body.layers.0.up", "body.layers.1.up"}


@shows("init_weights")
def _(folder: Path) -> None:
    assert (_output(_model(init_weights=False)) - _output(_model())).abs().max() > 1e-3


@shows("layers_to_transform")
def _(folder: Path) -> None:
    assert _shapes(layers_to_transform=[1]).keys() == {"body.layers.1.up", "body.layers.1.down"}


@shows("layers_pattern")
def _(folder: Path) -> None:
    assert _shapes(layers_to_transform=0, layers_pattern="layers").keys() == {"body.layers.0.up", "body.layers.0.down"}
    with pytest.raises(ValueError, match="blocks"):
        _model(layers_to_transform=0, layers_pattern="blocks")
    with pytest.raises(ConfigError, match="layers_pattern without layers_to_transform"):
        OFTConfig(layers_pattern="layers")


@shows("modules_to_save")
def _(folder: Path) -> None:
    assert {n for n in _trainable(modules_to_save=["head"]) if n.startswith("head")} and not any(
        n.startswith("head") for n in _trainable()
    )


@shows("coft")
def _(folder: Path) -> None:
    _changes(coft=True, given={"eps": 0.3})


@shows("eps")
def _(folder: Path) -> None:
    one, other = (_trained(coft=True, eps=eps) for eps in (0.1, 0.5))
    assert (one - other).abs().max() > 1e-3
    with pytest.raises(ConfigError, match="eps=0. Needed: a radius above 0"):
        OFTConfig(eps=0)


@shows("block_share")
def _(folder: Path) -> None:
    assert set(_shapes(block_share=True).values()) == {(1, 6)}
    _changes(block_share=True)


@shows("use_cayley_neumann")
def _(folder: Path) -> None:
    _changes(use_cayley_neumann=True)


@shows("num_cayley_neumann_terms")
def _(folder: Path) -> None:
    _changes(given={"use_cayley_neumann": True}, num_cayley_neumann_terms=2)
    with pytest.raises(ConfigError, match="num_cayley_neumann_terms=0. Needed: a whole number from 1 to 1000"):
        OFTConfig(num_cayley_neumann_terms=0)


@shows("rank_pattern")
def _(folder: Path) -> None:
    shapes = _shapes(rank_pattern={"0.up": 2})
    assert (shapes["body.layers.0.up"], shapes["body.layers.1.up"]) == ((2, 15), (3, 6))


@shows("alpha_pattern")
def _(folder: Path) -> None:
    with pytest.raises(ConfigError, match="alpha_pattern. Needed: no value: OFT has no alpha. Omit alpha_pattern"):
        OFTConfig(alpha_pattern={"up": 8})


@shows("block_size_pattern")
def _(folder: Path) -> None:
    shapes = _shapes(block_size_pattern={"1.down": 8})
    assert (shapes["body.layers.0.down"], shapes["body.layers.1.down"]) == ((6, 6), (3, 28))


@shows("layer_settings")
def _(folder: Path) -> None:
    own = {"body.layers.1.down": {"block_size": 8}, "body.layers.0.up": {"side": "out"}}
    shapes = _shapes(layer_settings=own)
    assert (shapes["body.layers.0.down"], shapes["body.layers.1.down"]) == ((6, 6), (3, 28))
    assert (shapes["body.layers.0.up"], shapes["body.layers.1.up"]) == ((6, 6), (3, 6))
    _changes(layer_settings={"body.layers.0.up": {"exact": False}})
    for wrong in ({"up": {"block": 8}}, {"up": {"side": "up"}}, {"up": 8}):
        with pytest.raises(ConfigError, match="layer_settings"):
            OFTConfig(layer_settings=wrong)


@shows("side")
def _(folder: Path) -> None:
    assert _shapes(side="out")["body.layers.0.up"] == (6, 6)
    _changes(side="out", given={"block_share": True})


@shows("conv")
def _(folder: Path) -> None:
    build = {"build": lambda: Net(nn.Conv1d(12, 8, 3)), "target_modules": ["layer"]}
    assert _shapes(**build) == {"layer": (9, 6)}
    assert _shapes(**build, conv="channels") == {"layer": (3, 6)}
    assert _saved(folder, **build, conv="channels")["conv"] == "channels"
    with pytest.raises(ConfigError, match="conv='patches'. Needed: one of 'kernel', 'channels'"):
        OFTConfig(conv="patches")


@shows("magnitude")
def _(folder: Path) -> None:
    model = _model(magnitude=True)
    assert sorted(p.numel() for n, p in rotation_parameters(model).items() if "magnitude" in n) == [12, 12, 24, 24]
    _changes(magnitude=True)


@shows("scaled")
def _(folder: Path) -> None:
    # the same stored numbers turn less, by 2 sqrt(b - 1)
    models = {scaled: _model(scaled=scaled) for scaled in (False, True)}
    for model in models.values():
        for parameter in rotation_parameters(model).values():
            nn.init.constant_(parameter, 0.2)
    assert (_output(models[False]) - _output(models[True])).abs().max() > 1e-3


@shows("block_size_fallback")
def _(folder: Path) -> None:
    with pytest.warns(UserWarning, match="does not divide 4 layers"):
        assert _shapes(oft_block_size=5, block_size_fallback="nearest")["body.layers.0.up"] == (3, 6)
    with pytest.raises(
        BlockSizeError, match=r"block_size=5 does not divide the 12 features of layer 'body.layers.0.up'"
    ):
        _model(oft_block_size=5, block_size_fallback="error")


@shows("target_parameters")
def _(folder: Path) -> None:
    fields = {"build": lambda: Net(Experts(False)), "target_parameters": ["layer.weight"]}
    assert _shapes(**fields) == {"layer": (9, 6)}


@shows("neumann_series")
def _(folder: Path) -> None:
    _changes(given={"use_cayley_neumann": True}, neumann_series="legacy")


@shows("needs_orthotune_for")
def _(folder: Path) -> None:
    assert _saved(folder / "plain")["peft_type"] == "OFT"
    saved = _saved(folder / "beyond", needs_orthotune_for=["Conv1D layers"])
    assert (saved["peft_type"], saved["needs_orthotune_for"]) == ("ORTHOTUNE", ["Conv1D layers"])


@shows("format_version")
def _(folder: Path) -> None:
    with pytest.raises(ConfigError, match="format version 99. Needed: at most 1. Upgrade orthotune"):
        OFTConfig(format_version=99)
    assert _saved(folder, side="out")["format_version"] == 1


def test_every_field_has_a_demonstration_and_every_demonstration_a_field() -> None:
    assert set(DEMONSTRATIONS) == {field.name for field in dataclasses.fields(OFTConfig)}


@pytest.mark.parametrize("field", DEMONSTRATIONS)
def test_the_field_turns_something_or_is_refused(field: str, tmp_path: Path) -> None:
    DEMONSTRATIONS[field](tmp_path)
