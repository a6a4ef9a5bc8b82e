"""From a model-wide config to the settings of one layer."""

from __future__ import annotations

import re
from dataclasses import replace

from orthotune.errors import ConfigError
from orthotune.layers.settings import LayerSettings
from orthotune.rotation.spec import RotationSpec
from orthotune.tuner.config import OFTConfig


def _lookup(pattern: dict[str, int], layer: str) -> int | None:
    """Value of the first key that is the end of the layer's name, or matches it as a regular expression."""
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", layer):
            return value
    return None


def settings_for(config: OFTConfig, layer: str) -> LayerSettings:
    """What ``config`` asks of ``layer``, patterns and settings of its own applied.

    Raises:
        ConfigError: both patterns give the layer a size.

    Example:
        >>> settings_for(OFTConfig(block_size_pattern={"q_proj": 8}), "layers.0.q_proj").spec.block_size
        8
    """
    if layer in config.transforms:
        frozen = config.transforms[layer]
        return LayerSettings(layer, RotationSpec(side=frozen.side), frozen=frozen)
    r, block_size = config.r, config.oft_block_size or 0
    fallback = config.block_size_fallback or "nearest"
    own_r, own_size = _lookup(config.rank_pattern, layer), _lookup(config.block_size_pattern, layer)
    if own_r is not None and own_size is not None:
        raise ConfigError(
            f"layer '{layer}'",
            got=f"r={own_r} from rank_pattern and block size {own_size} from block_size_pattern",
            needed="one of the two",
        )
    if own_r is not None:
        r, block_size = own_r, 0
    elif own_size is not None:
        r, block_size = 0, own_size
    for name, value in (("rank_pattern", own_r), ("block_size_pattern", own_size)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ConfigError(f"{name} for layer '{layer}': {value!r}", needed="a whole number above 0")
    own = config.layer_settings.get(layer, {})
    if "r" in own or "block_size" in own:
        r, block_size = own.get("r", 0), own.get("block_size", 0)
    spec = replace(config.spec_for(layer), block_size=block_size)
    return LayerSettings(layer, spec, r, fallback, config.init_weights)
