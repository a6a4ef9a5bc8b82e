"""A new quantized library is a class and an entry of the registry.

The steps of docs/contributing/add-a-quantized-library.md; the checks run over this library in test_toy.py.
"""

from __future__ import annotations

import importlib
import pkgutil

import pytest
import torch
from torch import nn

import orthotune.quantized
from orthotune import OFTConfig, get_peft_model
from orthotune.errors import UnsupportedLayerError
from orthotune.quantized import registry
from orthotune.quantized.contract import Library
from orthotune.quantized.registry import LIBRARIES, library_of
from tests.quantized.toy import RoundedLibrary, RoundedLinear


def test_every_library_is_in_the_registry() -> None:
    for module in pkgutil.iter_modules(orthotune.quantized.__path__, "orthotune.quantized."):
        importlib.import_module(module.name)
    defined, left = set(), [Library]
    while left:
        below = [one for one in left.pop().__subclasses__() if one.__module__.startswith("orthotune.")]
        left += below
        defined |= {one for one in below if one.classes}
    assert defined == {type(library) for library in LIBRARIES}
    claimed = [path for library in LIBRARIES for path in library.classes]
    assert len(set(claimed)) == len(claimed), "two libraries claim one class"


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: type(library).__name__)
def test_a_library_declares_itself(library: Library) -> None:
    assert library.name and library.classes and type(library).__doc__
    filled = {name for name in vars(Library) if getattr(type(library), name) is not getattr(Library, name)}
    assert {"mode", "dequantize"} <= filled
    # one that merges, into some layers at least, says how a weight is stored again and how far that moves it
    assert ({"requantize", "rounding"} <= filled) == (library.no_merge is None or "cannot_merge" in filled)


def test_the_smallest_library_states_seven_things() -> None:
    stated = {name for name in vars(RoundedLibrary) if not name.startswith("__")}
    assert stated == {"name", "classes", "no_merge", "mode", "dequantize", "requantize", "rounding"}


def _adapted() -> nn.Module:
    torch.manual_seed(0)
    base = nn.Sequential(RoundedLinear(nn.Linear(16, 8)))
    config = OFTConfig(oft_block_size=4, target_modules=["0"], init_weights=False)
    return get_peft_model(base, config).eval()


def test_an_entry_of_the_registry_is_all_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedLayerError, match="layer '0'.*RoundedLinear"):
        _adapted()
    monkeypatch.setattr(registry, "LIBRARIES", [*LIBRARIES, RoundedLibrary()])
    model, x = _adapted(), torch.randn(3, 16)
    y = model(x)
    merged = model.merge_and_unload(dequantize=True)
    assert library_of(merged[0]) is None
    torch.testing.assert_close(merged(x), y, rtol=1e-5, atol=1e-6)  # float32, products in another order
