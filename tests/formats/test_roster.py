"""Each format is on the roster, and what stock PEFT cannot express is listed alike where files are read and written."""

from __future__ import annotations

import importlib
import pkgutil

import orthotune.formats
from orthotune.formats.peft_oft import BEYOND_STOCK, OURS
from orthotune.formats.roster import FORMATS
from orthotune.tuner.expressible import ASSUMED, ORTHOTUNE_TYPE


def test_every_format_is_on_the_roster() -> None:
    names = [f"orthotune.formats.{m.name}" for m in pkgutil.iter_modules(orthotune.formats.__path__)]
    formats = [module for module in map(importlib.import_module, names) if hasattr(module, "detect")]
    assert {module.__name__ for module in formats} == {module.__name__ for module in FORMATS}


def test_reader_and_writer_agree_on_what_is_beyond_stock_peft() -> None:
    assert BEYOND_STOCK | {"needs_orthotune_for": None} == ASSUMED
    assert OURS == ORTHOTUNE_TYPE
