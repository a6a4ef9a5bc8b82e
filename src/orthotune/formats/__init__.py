"""Adapter files, one file per format, and the canonical ``AdapterState`` that they are read into."""

from orthotune.formats.adapter_state import AdapterState, LayerState, Map
from orthotune.formats.read_options import ReadOptions
from orthotune.formats.roster import read_adapter
from orthotune.formats.weight_transform import Side, Strength, WeightTransform

__all__ = ["AdapterState", "LayerState", "Map", "ReadOptions", "Side", "Strength", "WeightTransform", "read_adapter"]
