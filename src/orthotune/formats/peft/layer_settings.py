"""The config field ``layer_settings`` of orthotune: settings of single layers that differ from the rest of the adapter.

Its keys are part of the file format. Only this file translates them to a spec and back.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from orthotune.rotation.spec import Map, RotationSpec

#: key -> the allowed types, or the allowed values
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
    "rank": (int,),
    "factors": (int,),
    "transform": (str,),
    "variant": (str,),
    "conv": ("kernel", "channels"),
}
#: keys of transforms other than blocks, with the values that they have for blocks
OF_OTHERS: dict[str, Any] = {"transform": "blocks", "rank": 0, "factors": 1, "variant": ""}
#: the same of convolutions, and of other layers
OF_CONVOLUTIONS: dict[str, Any] = {"conv": "kernel"}
#: name of a Neumann series in PEFT -> name in a spec
SERIES: dict[str, Map] = {"current": "neumann", "legacy": "neumann_legacy"}
#: Most terms of a series. A longer series has converged or overflowed, and a huge number would take hours.
MOST_TERMS = 1000
#: smallest and largest values of numbers; an infinite radius would not constrain anything
RANGES = {"r": (0, 1 << 31), "block_size": (0, 1 << 31), "terms": (1, MOST_TERMS), "eps": (0, 1e300)}
RANGES |= {"rank": (0, 1 << 31), "factors": (1, 64)}


def fault(found: Any) -> str | None:
    """A description of the fault in the field of a config, or None.

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


def with_layer_settings(spec: RotationSpec, own: Mapping[str, Any], series: str = "current") -> RotationSpec:
    """The spec of a layer with ``layer_settings``.

    Args:
        spec: of the adapter.
        own: the entry of the layer in the field; with ``r`` the block size depends on the width of the layer.
        series: the Neumann series of the layer, where the adapter uses the exact map and the layer does not.

    Example:
        >>> with_layer_settings(RotationSpec(block_size=8), {"side": "out", "exact": False}).map
        'neumann'
    """
    if not own:
        return spec
    plain = ("side", "shared", "magnitude", "scaled", "terms", "eps", *OF_OTHERS, *OF_CONVOLUTIONS)
    named = {name: own[name] for name in plain if name in own}
    if own.get("exact", spec.exact):
        named["map"] = "exact"
    else:
        named["map"] = SERIES[own.get("series", series if spec.exact else series_of(spec))]
    if "block_size" in own or "r" in own:
        named["block_size"] = own.get("block_size", 0)
    return replace(spec, **named)


def settings_of_spec(spec: RotationSpec) -> dict[str, Any]:
    """All settings of a layer, as an entry of the field.

    Example:
        >>> settings_of_spec(RotationSpec(map="neumann_legacy"))["series"]
        'legacy'
    """
    named = {name: getattr(spec, name) for name in ("block_size", "side", "shared", "magnitude", "scaled", "terms")}
    others = {name: getattr(spec, name) for name in OF_OTHERS} if spec.transform != "blocks" else {}
    others |= {"conv": spec.conv} if spec.conv != "kernel" else {}
    return named | others | {"exact": spec.exact, "series": series_of(spec), "eps": spec.eps}


def series_of(spec: RotationSpec) -> str:
    """The name of the Neumann series in PEFT; ``current`` where the map is exact."""
    return next((name for name, map in SERIES.items() if map == spec.map), "current")


def in_common(specs: Mapping[str, RotationSpec]) -> tuple[RotationSpec, dict[str, dict[str, Any]]]:
    """The most frequent value of each setting, and the field for the layers that differ.

    Args:
        specs: layer -> spec; at least one layer.

    Example:
        >>> usual, field = in_common({"a": RotationSpec(), "b": RotationSpec(), "c": RotationSpec(side="out")})
        >>> usual.side, field
        ('in', {'c': {'side': 'out'}})
    """
    settings = {name: settings_of_spec(spec) for name, spec in specs.items()}
    if any("transform" in found for found in settings.values()):
        settings = {name: OF_OTHERS | found for name, found in settings.items()}
    if any("conv" in found for found in settings.values()):
        settings = {name: OF_CONVOLUTIONS | found for name, found in settings.items()}
    first = next(iter(settings.values()))
    usual = {key: Counter(found[key] for found in settings.values()).most_common(1)[0][0] for key in first}
    own = {name: {key: v for key, v in found.items() if v != usual[key]} for name, found in settings.items()}
    spec = with_layer_settings(next(iter(specs.values())), usual)
    return spec, {name: found for name, found in own.items() if found}
