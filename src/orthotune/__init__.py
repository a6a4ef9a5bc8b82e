"""Orthogonal finetuning (OFT) that is exact, right on every layer, and readable by every tool.

Importing orthotune loads nothing: each name below is imported when it is first used. The first one that needs PEFT's
host also registers orthotune there: ``get_peft_model``, ``PeftModel.from_pretrained``, TRL, transformers and diffusers
then use it for every OFT config and adapter. :func:`register` does so at once, for code that calls those libraries
alone; :func:`unregister` gives OFT back to PEFT.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from orthotune.errors import OrthotuneError

if TYPE_CHECKING:
    from peft import PeftModel

    from orthotune.formats.adapter_state import AdapterState
    from orthotune.formats.read_options import ReadOptions
    from orthotune.formats.registry import read_adapter
    from orthotune.formats.writers import write_adapter
    from orthotune.image.control.pipeline import ControlPipeline
    from orthotune.image.draw import draw
    from orthotune.image.families.registry import open_family
    from orthotune.layers.plan import explain
    from orthotune.operations.combine import combine
    from orthotune.operations.convert import convert
    from orthotune.operations.diagnosis.diagnose import diagnose
    from orthotune.operations.distance import distance
    from orthotune.operations.export import export
    from orthotune.operations.extract import extract
    from orthotune.operations.fitting.report import LoadReport
    from orthotune.operations.generate import generate
    from orthotune.operations.hotswap import hotswap_adapter
    from orthotune.operations.identify import identify
    from orthotune.operations.inspect import inspect
    from orthotune.operations.load import load_adapter
    from orthotune.operations.merge import merge
    from orthotune.operations.rewind import rewind
    from orthotune.tuner.config import OFTConfig
    from orthotune.tuner.lora_conversion import as_lora
    from orthotune.tuner.merge_aware import merge_aware
    from orthotune.tuner.model import OFTModel
    from orthotune.tuner.published_configs import get_peft_model
    from orthotune.tuner.register import register, unregister
    from orthotune.tuner.strength import free_magnitudes, set_scale
    from orthotune.tuner.two_sided import two_sided

__version__ = "0.2.0.dev0"
__all__ = [
    "AdapterState",
    "ControlPipeline",
    "LoadReport",
    "OFTConfig",
    "OFTModel",
    "OrthotuneError",
    "PeftModel",
    "ReadOptions",
    "as_lora",
    "combine",
    "convert",
    "diagnose",
    "distance",
    "draw",
    "explain",
    "export",
    "extract",
    "free_magnitudes",
    "generate",
    "get_peft_model",
    "hotswap_adapter",
    "identify",
    "inspect",
    "load_adapter",
    "merge",
    "merge_aware",
    "open_family",
    "read_adapter",
    "register",
    "rewind",
    "set_scale",
    "two_sided",
    "unregister",
    "write_adapter",
]

#: Public name -> the module that has it. ``TYPE_CHECKING`` above says the same to type checkers; a test compares them.
HOMES = {
    "AdapterState": "orthotune.formats.adapter_state",
    "ControlPipeline": "orthotune.image.control.pipeline",
    "LoadReport": "orthotune.operations.fitting.report",
    "OFTConfig": "orthotune.tuner.config",
    "OFTModel": "orthotune.tuner.model",
    "PeftModel": "peft",
    "ReadOptions": "orthotune.formats.read_options",
    "as_lora": "orthotune.tuner.lora_conversion",
    "combine": "orthotune.operations.combine",
    "convert": "orthotune.operations.convert",
    "diagnose": "orthotune.operations.diagnosis.diagnose",
    "distance": "orthotune.operations.distance",
    "draw": "orthotune.image.draw",
    "explain": "orthotune.layers.plan",
    "export": "orthotune.operations.export",
    "extract": "orthotune.operations.extract",
    "free_magnitudes": "orthotune.tuner.strength",
    "generate": "orthotune.operations.generate",
    "get_peft_model": "orthotune.tuner.published_configs",
    "hotswap_adapter": "orthotune.operations.hotswap",
    "identify": "orthotune.operations.identify",
    "inspect": "orthotune.operations.inspect",
    "load_adapter": "orthotune.operations.load",
    "merge": "orthotune.operations.merge",
    "merge_aware": "orthotune.tuner.merge_aware",
    "open_family": "orthotune.image.families.registry",
    "read_adapter": "orthotune.formats.registry",
    "register": "orthotune.tuner.register",
    "rewind": "orthotune.operations.rewind",
    "set_scale": "orthotune.tuner.strength",
    "two_sided": "orthotune.tuner.two_sided",
    "unregister": "orthotune.tuner.register",
    "write_adapter": "orthotune.formats.writers",
}


def __getattr__(name: str) -> Any:
    home = HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'orthotune' has no attribute {name!r}")
    if home == "peft":  # whoever takes PEFT's functions from here wants ours behind them
        import_module("orthotune.tuner")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
