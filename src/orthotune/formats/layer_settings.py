"""``layer_settings`` of a config of ours: what single layers do otherwise than the rest of their adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from orthotune.formats.adapter_state import LayerState

#: field -> what it may hold: types, or the words that are allowed
FIELDS: dict[str, tuple[Any, ...]] = {
    "r": (int,),
    "block_size": (int,),
    "side": ("in", "out"),
    "shared": (bool,),
    "magnitude": (bool,),
    "scaled": (bool,),
    "exact": (bool,),
    "terms": (int,),
    "series": ("current", "legacy"),
    "eps": (float, int, type(None)),
}
#: A series of more terms has overflowed, or long converged; a hostile number would take hours.
MOST_TERMS = 1000
#: the least and the most that a number may be; an infinite radius would be no ball
RANGES = {"r": (0, 1 << 31), "block_size": (0, 1 << 31), "terms": (1, MOST_TERMS), "eps": (0, 1e300)}


def fault(found: Any) -> str | None:
    """What is wrong with the field as a config holds it, or None.

    Example:
        >>> fault({"lin": {"side": "up"}})
        "side='up' for layer 'lin'"
    """
    if not isinstance(found, Mapping):
        return f"{type(found).__name__}"
    for layer, own in found.items():
        if not isinstance(own, Mapping):
            return f"{type(own).__name__} for layer '{layer}'"
        for name, value in own.items():
            allowed = FIELDS.get(name, ())
            low, high = RANGES.get(name, (-math.inf, math.inf))
            fits = type(value) in allowed or any(value is one or value == one for one in allowed)
            if not fits or (type(value) in (int, float) and not low <= value <= high):
                return f"{name}={repr(value)[:80]} for layer '{layer}'"
    return None


def with_own_settings(layer: LayerState, own: Mapping[str, Any]) -> LayerState:
    """The layer as its own settings say; sizes are those of its tensors anyway.

    Example:
        >>> import torch
        >>> with_own_settings(LayerState({"": torch.zeros(2, 3)}), {"side": "out"}).side
        'out'
    """
    if not own:
        return layer
    same = {name: own[name] for name in ("side", "shared", "scaled", "terms", "eps") if name in own}
    exact, series = own.get("exact", layer.map == "exact"), own.get("series")
    if exact:
        same["map"] = "exact"
    else:
        legacy = layer.map == "neumann_legacy" if series is None else series == "legacy"
        same["map"] = "neumann_legacy" if legacy else "neumann"
    return replace(layer, **same)
