"""Each format is in the registry and declares itself, and a new one is a class and an entry there."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import orthotune.formats
from orthotune import OFTConfig
from orthotune.cli.main import app
from orthotune.formats import AdapterState, LayerState, ReadOptions, read_adapter, registry
from orthotune.formats.adapter_file import AdapterFile
from orthotune.formats.format import Format
from orthotune.formats.kinds import EXACT_OUT
from orthotune.formats.names.modules import match_names
from orthotune.formats.peft.beyond_stock import ASSUMED, beyond_stock
from orthotune.formats.registry import FORMATS, targets
from orthotune.operations.convert import convert
from orthotune.operations.identify import identify
from orthotune.rotation.spec import RotationSpec


def test_every_format_is_in_the_registry() -> None:
    for module in pkgutil.walk_packages(orthotune.formats.__path__, "orthotune.formats."):
        importlib.import_module(module.name)
    defined, left = set(), [Format]
    while left:
        below = [one for one in left.pop().__subclasses__() if one.__module__.startswith("orthotune.")]
        left += below
        defined |= {one for one in below if "name" in vars(one)}
    assert defined == {type(format) for format in FORMATS}
    assert len({format.name for format in FORMATS}) == len(FORMATS)


@pytest.mark.parametrize("format", FORMATS, ids=lambda format: format.name)
def test_a_format_declares_itself(format: Format) -> None:
    assert format.producer or format.target, "neither read nor written"
    assert format.prefixes and type(format).__doc__
    assert (format.target is None) == (not format.tool) == (not format.lossless)
    for side, methods in ((format.producer, ("detect", "read")), (format.target, ("write",))):
        for method in methods:
            filled = getattr(type(format), method) is not getattr(Format, method)
            assert filled or not side, f"{method} is missing"


def test_the_registry_loads_nothing_heavy() -> None:
    code = (
        "import sys; from orthotune.formats.registry import targets; assert len(targets()) > 10;"
        "heavy = {'torch', 'safetensors', 'numpy', 'peft'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Toy(Format):
    """Packed triangles of the output side under ``toy_R``, and names that no other tool writes."""

    name = target = "toy"
    producer = "the toy tool, 1.0"
    tool = "the toy tool"
    prefixes = (("toynet_", ("unet", "transformer"), True),)
    lossless = frozenset({EXACT_OUT})
    side = "out"
    spellings: ClassVar = {"": "toynet_", "unet": "toynet_"}
    kept = ()

    def detect(self, file: AdapterFile, options: ReadOptions) -> bool:
        return file.has("toy_R")

    def read(self, file: AdapterFile, options: ReadOptions) -> AdapterState:
        found = file.layers("toy_R")
        tensors = {stem: file.read(names.values())[names["toy_R"]] for stem, names in found.items()}
        layers = {stem: LayerState({"": tensor}, RotationSpec(side="out")) for stem, tensor in tensors.items()}
        return AdapterState(layers, source=file.path, format=self.name, prefixes={stem: stem for stem in layers})

    def write(self, state: AdapterState, out: Path, names: Mapping[str, str]) -> Path:
        save_file({f"{names[n]}.toy_R": layer.vector() for n, layer in state.layers.items()}, out)
        return out


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file of a format that is one class and one entry of the registry."""
    monkeypatch.setattr(registry, "FORMATS", (*FORMATS, Toy()))
    torch.manual_seed(0)
    save_file({"toynet_blk_lin.toy_R": 0.1 * torch.randn(3, 6)}, tmp_path / "toy.safetensors")
    return tmp_path / "toy.safetensors"


def test_a_new_format_is_identified_and_read(toy: Path) -> None:
    facts = json.loads(CliRunner().invoke(app, ["identify", str(toy), "--json"]).stdout)
    assert (facts["format"], facts["producer"], facts["sides"]) == ("toy", "the toy tool, 1.0", ["out"])
    assert facts["conversions"]["toy"] == "lossless" and list(facts["conversions"])[-2:] == ["toy", "diff"]
    assert list(read_adapter(toy).layers) == ["toynet_blk_lin"]


def test_the_names_of_a_new_format_are_found_in_a_model(toy: Path) -> None:
    assert match_names(read_adapter(toy).layers, {"unet": ["blk.lin"]}).matched == {
        "toynet_blk_lin": ("unet", "blk.lin")
    }


def test_a_new_format_is_converted_both_ways(toy: Path, tmp_path: Path) -> None:
    there = convert(toy, tmp_path / "comfyui.safetensors", "comfyui", linear=True)
    assert there.plan is not None and there.plan.verdict == "lossless"
    assert "lora_unet_blk_lin.oft_blocks" in load_file(there.written)
    back = convert(there.written, tmp_path / "back.safetensors", "toy", linear=True)
    assert torch.equal(*(load_file(path)["toynet_blk_lin.toy_R"] for path in (toy, back.written)))
    assert identify(back.written).format == "toy"


def test_what_a_new_format_cannot_hold_is_refused_with_the_reason(toy: Path) -> None:
    assert targets()["toy"].can_hold("in exact")[0] == "impossible"
    assert targets()["toy"].can_hold("embedding") == ("impossible", "the format has no embeddings")


def test_what_stock_peft_assumes_is_the_default_here() -> None:
    plain = OFTConfig()
    assert {name: getattr(plain, name) for name in ASSUMED} == ASSUMED


def test_layer_kinds_are_named_themselves() -> None:
    assert beyond_stock({"side": "out", "needs_orthotune_for": ["convolutions"]}) == ["side", "convolutions"]
