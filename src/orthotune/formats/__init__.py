"""Adapter files, one file per format, and the canonical ``AdapterState`` that they are read into."""

from orthotune.formats.adapter_state import AdapterState, LayerState, Map, Side
from orthotune.formats.roster import read_adapter

__all__ = ["AdapterState", "LayerState", "Map", "Side", "read_adapter"]
