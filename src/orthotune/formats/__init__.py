"""Adapter files, one file per format, and the canonical ``AdapterState`` that they are read into."""

from orthotune.formats.adapter_state import AdapterState, LayerState
from orthotune.formats.read_options import ReadOptions
from orthotune.formats.registry import read_adapter

__all__ = ["AdapterState", "LayerState", "ReadOptions", "read_adapter"]
