"""Each format is on the roster, and what stock PEFT cannot express is listed alike where files are read and written."""

from __future__ import annotations

import importlib
import pkgutil

import orthotune.formats
from orthotune import OFTConfig
from orthotune.formats.peft.beyond_stock import ASSUMED
from orthotune.formats.peft.packed import beyond_stock
from orthotune.formats.registry import FORMATS


def test_every_format_is_on_the_roster() -> None:
    names = [m.name for m in pkgutil.walk_packages(orthotune.formats.__path__, "orthotune.formats.")]
    formats = [module for module in map(importlib.import_module, names) if hasattr(module, "detect")]
    assert {module.__name__ for module in formats} == {module.__name__ for module in FORMATS}


def test_what_stock_peft_assumes_is_the_default_here() -> None:
    plain = OFTConfig()
    assert {name: getattr(plain, name) for name in ASSUMED} == ASSUMED


def test_layer_kinds_are_named_themselves() -> None:
    assert beyond_stock({"side": "out", "needs_orthotune_for": ["convolutions"]}) == ["side", "convolutions"]
