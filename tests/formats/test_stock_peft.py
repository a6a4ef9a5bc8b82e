"""What is written for PEFT or orthotune gives, loaded by that, the weights that the first program gave."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn

import orthotune
from orthotune.formats import read_adapter
from orthotune.formats.convert import convert
from orthotune.formats.writers import write_adapter
from tests.support.producers import FIXTURES


@pytest.fixture
def stock() -> Iterator[None]:
    orthotune.unregister()
    yield
    orthotune.register()


PAIRS = [
    ("onetrainer-oftv2-2026-08/scaled/adapter_kohya.safetensors", "peft"),
    ("onetrainer-oftv2-2026-08/block_share/adapter_internal.safetensors", "peft"),
    ("onetrainer-oftv2-2026-08/adjusted_bs5/adapter_kohya.safetensors", "peft"),
    ("peft-0.21.2-oft/coft", "peft"),
    ("peft-0.15.2-oft/plain", "peft-boft"),
    ("peft-0.15.2-oft/block_share", "peft-boft"),
    ("peft-0.21.2-oft/exact", "peft-boft"),
]
OWN = [
    "onetrainer-oftv2-2026-08/scaled/adapter_internal.safetensors",
    "lycoris-3.0.0/diag_rescaled/adapter.safetensors",
    "kohya-oft-2023-10/constraint/adapter.safetensors",
    "peft-0.17.1-oft/neumann5",
    "peft-0.13.2-oft/block_share",
    "peft-0.15.2-oft/block_size",
]


@pytest.mark.parametrize(("adapter", "target"), PAIRS)
@pytest.mark.usefixtures("stock")
def test_stock_peft_loads_it_as_it_was_meant(adapter: str, target: str, tmp_path: Path) -> None:
    _loads_as_meant(adapter, target, tmp_path)


@pytest.mark.parametrize("adapter", OWN)
def test_orthotune_loads_it_as_it_was_meant(adapter: str, tmp_path: Path) -> None:
    _loads_as_meant(adapter, "orthotune", tmp_path)


def _loads_as_meant(adapter: str, target: str, tmp_path: Path) -> None:
    path = FIXTURES / adapter
    io = load_file((path if path.is_dir() else path.parent) / "io.safetensors")
    layers = {"lin": nn.Linear(24, 16), "conv": nn.Conv2d(8, 12, 3)}
    for name, layer in layers.items():
        layer.weight = nn.Parameter(io[f"{name}.weight"].clone())
    model = nn.Module()
    model.blk = nn.ModuleDict(layers)
    state = read_adapter(path)
    places = {name: "conv" if "conv" in name else "lin" for name in state.layers}
    converted, _ = convert(state, target, {name: io[f"{base}.weight"].shape for name, base in places.items()})
    nested = "blk" in str(list(state.layers))
    write_adapter(converted, tmp_path / "out", target, {"": ["blk.lin", "blk.conv"]} if nested else None)
    whole = model if nested else model.blk
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*")
        merged = PeftModel.from_pretrained(whole, tmp_path / "out").merge_and_unload()
    for name, base in places.items():
        expected = state.layers[name].apply(io[f"{base}.weight"])
        found = merged.get_submodule(f"blk.{base}" if whole is model else base).weight
        # both in float32, weights of about 1
        torch.testing.assert_close(found.detach(), expected, rtol=0, atol=2e-6)
