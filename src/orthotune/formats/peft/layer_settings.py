"""``layer_settings`` of a config of ours: what single layers do otherwise than the rest of their adapter.

Its keys are part of the file format. They are translated to a spec and back here, and nowhere else.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from orthotune.rotation.spec import Map, RotationSpec

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
#: PEFT's name of a polynomial -> the spec's
SERIES: dict[str, Map] = {"current": "neumann", "legacy": "neumann_legacy"}
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


def with_own(spec: RotationSpec, own: Mapping[str, Any], series: str = "current") -> RotationSpec:
    """The spec of a layer whose own settings say ``own``; the rest of its adapter is ``spec``.

    Args:
        spec: of the rest.
        own: one entry of the field; ``r`` leaves the block size to the width of the layer.
        series: which one is meant where the rest is exact and the layer is not.

    Example:
        >>> with_own(RotationSpec(block_size=8), {"side": "out", "exact": False}).map
        'neumann'
    """
    if not own:
        return spec
    named = {name: own[name] for name in ("side", "shared", "magnitude", "scaled", "terms", "eps") if name in own}
    if own.get("exact", spec.exact):
        named["map"] = "exact"
    else:
        named["map"] = SERIES[own.get("series", series if spec.exact else series_of(spec))]
    if "block_size" in own or "r" in own:
        named["block_size"] = own.get("block_size", 0)
    return replace(spec, **named)


def own_settings(spec: RotationSpec) -> dict[str, Any]:
    """Everything that the field can say of a layer.

    Example:
        >>> own_settings(RotationSpec(map="neumann_legacy"))["series"]
        'legacy'
    """
    named = {name: getattr(spec, name) for name in ("block_size", "side", "shared", "magnitude", "scaled", "terms")}
    return named | {"exact": spec.exact, "series": series_of(spec), "eps": spec.eps}


def series_of(spec: RotationSpec) -> str:
    """PEFT's name of the polynomial; the current one where the map is exact."""
    return next((name for name, map in SERIES.items() if map == spec.map), "current")


def in_common(specs: Mapping[str, RotationSpec]) -> tuple[RotationSpec, dict[str, dict[str, Any]]]:
    """What most layers have in common, setting by setting, and the field for the layers that differ.

    Args:
        specs: layer -> spec, at least one.

    Example:
        >>> usual, field = in_common({"a": RotationSpec(), "b": RotationSpec(), "c": RotationSpec(side="out")})
        >>> usual.side, field
        ('in', {'c': {'side': 'out'}})
    """
    settings = {name: own_settings(spec) for name, spec in specs.items()}
    first = next(iter(settings.values()))
    usual = {key: Counter(found[key] for found in settings.values()).most_common(1)[0][0] for key in first}
    own = {name: {key: v for key, v in found.items() if v != usual[key]} for name, found in settings.items()}
    spec = with_own(next(iter(specs.values())), usual)
    return spec, {name: found for name, found in own.items() if found}
