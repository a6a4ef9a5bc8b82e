"""Adapter files: one class for each format, and the canonical ``AdapterState`` that files of all formats are read into.

A folder holds the formats of one tool; ``codecs`` and ``names`` are shared by several tools. Importing this package
imports neither torch nor safetensors, so that the registry of formats can be listed quickly.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orthotune.formats.adapter_state import AdapterState, LayerState
    from orthotune.formats.read_options import ReadOptions
    from orthotune.formats.registry import read_adapter

__all__ = ["AdapterState", "LayerState", "ReadOptions", "read_adapter"]

_MODULES = {
    "AdapterState": "adapter_state",
    "LayerState": "adapter_state",
    "ReadOptions": "read_options",
    "read_adapter": "registry",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'orthotune.formats' has no attribute {name!r}")
    return getattr(import_module(f"orthotune.formats.{_MODULES[name]}"), name)
