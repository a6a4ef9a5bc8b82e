"""``layers_to_transform``: which layer of a model's list a module is in, wherever the list is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from peft.tuners.tuners_utils import _ExcludedModule, check_target_module_exists

#: the list is the model itself, or one of its own children
AT_ROOT = re.compile(r"(?:[^.]+\.)?(?P<idx>\d+)\.")
#: elsewhere: the first numbered name counts, as PEFT has it
BELOW = re.compile(r".*?\.[^.]*\.(?P<idx>\d+)\.")


def wanted_layers(config: Any) -> list[int]:
    """The indices of ``layers_to_transform``; none when every layer is meant."""
    found = getattr(config, "layers_to_transform", None)
    return [] if found is None else [found] if isinstance(found, int) else list(found)


def layer_index(config: Any, key: str) -> int | None:
    """The index of the layer that the module ``key`` is in; None when it is in no layer.

    Example:
        >>> from orthotune import OFTConfig
        >>> layer_index(OFTConfig(), "layers.1.experts.0.up"), layer_index(OFTConfig(), "model.layers.2.up")
        (1, 2)
    """
    patterns = getattr(config, "layers_pattern", None) or []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if match := re.match(rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.", key):
            return int(match["idx"])
    if patterns:
        return None
    match = AT_ROOT.match(key) or BELOW.match(key)
    return int(match["idx"]) if match else None


def is_target(config: Any, names: Sequence[str]) -> Any:
    """Whether a config means the module with these names: PEFT's rules, for each of them.

    Args:
        config: an ``OFTConfig``.
        names: all names of one module.

    Returns:
        True or a match; False; or PEFT's mark for a module that is left out on purpose, which counts as False.
    """
    found: Any = False
    for name in names:
        one = check_target_module_exists(config, name)
        if isinstance(one, _ExcludedModule):
            return one
        targets = config.target_modules
        listed = isinstance(targets, (list, set, tuple)) and name not in targets
        if listed and wanted_layers(config) and any(name.endswith(f".{target}") for target in targets):
            # PEFT looks for a list below the root only, and takes an expert's number for a layer's.
            one = layer_index(config, name) in wanted_layers(config)
        found = found or one
    return found
