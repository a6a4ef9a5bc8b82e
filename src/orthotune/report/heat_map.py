"""Layers over depth and module: one cell for each rotation, and histograms of its angles."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

#: what is drawn: key of a layer's row, its title, and whether its size matters more than its digits
MEASURES = (
    ("angle_mean", "mean angle, rad", False),
    ("angle_max", "largest angle, rad", False),
    ("distance", "distance from identity", False),
    ("orthogonality_error", "orthogonality error, log scale", True),
    ("weight_change", "relative change of the weight", False),
    ("spectrum_change", "relative change of the spectrum, log scale", True),
    ("dead", "share of blocks that have not moved", False),
    ("saturation", "share of blocks on the surface of the ball", False),
    ("gradient_norm", "gradient norm, log scale", True),
)


def place_of(layer: str, part: str = "") -> tuple[int, str]:
    """Depth and module of a layer: the first number in its name, and the rest.

    Example:
        >>> place_of("model.layers.11.self_attn.q_proj"), place_of("lm_head")
        ((11, 'self_attn.q_proj'), (0, 'lm_head'))
    """
    found = re.search(r"(?:^|\.)(\d+)(?:\.|$)", layer)
    depth, module = (int(found[1]), layer[found.end() :]) if found else (0, layer)
    module = module or layer
    return depth, f"{module} ({part})" if part else module


def heat_maps(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A map for each measure that the rows have: ``title``, ``depths``, and ``lines`` of cells by module.

    A cell has ``value``, ``shade`` from 0 to 1 and ``label``; None where the model has no such layer.
    """
    places = [place_of(str(row.get("layer")), str(row.get("part") or "")) for row in rows]
    depths, modules = sorted({depth for depth, _ in places}), list(dict.fromkeys(module for _, module in places))
    maps = []
    for key, title, logarithmic in MEASURES:
        values = {
            place: float(row[key]) for place, row in zip(places, rows, strict=True) if _is_number(row.get(key))
        }  # several layers at one place: the last one
        if not values or (len(set(values.values())) == 1 and next(iter(values.values())) == 0):
            continue
        shades = _shades(values, logarithmic)
        lines = [
            (
                module,
                [
                    {
                        "value": values[depth, module], "shade": shades[depth, module],
                        "label": f"{module}, depth {depth}: {values[depth, module]:.3g}",
                    }
                    if (depth, module) in values else None
                    for depth in depths
                ],
            )
            for module in modules
        ]  # fmt: skip
        low, high = min(values.values()), max(values.values())
        maps.append({"key": key, "title": title, "depths": depths, "lines": lines, "low": low, "high": high})
    return maps


def _shades(values: Mapping[Any, float], logarithmic: bool) -> dict[Any, float]:
    scale = {place: math.log10(max(value, 1e-12)) if logarithmic else value for place, value in values.items()}
    low = min(scale.values()) if logarithmic else min(0.0, *scale.values())
    width = max(scale.values()) - low
    return {place: round((value - low) / width, 3) if width > 0 else 0.5 for place, value in scale.items()}


def histograms(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Angles of all layers of a module together: ``module``, and ``bars`` with ``height`` 0 to 1 and ``label``."""
    counts: dict[str, list[int]] = {}
    for row in rows:
        found = row.get("angle_counts")
        if not isinstance(found, list | tuple) or not found:
            continue
        _, module = place_of(str(row.get("layer")), str(row.get("part") or ""))
        held = counts.setdefault(module, [0] * len(found))
        counts[module] = [a + int(b) for a, b in zip(held, found, strict=False)]
    drawn = []
    for module, bars in counts.items():
        top, width = max(bars) or 1, math.pi / len(bars)
        drawn.append(
            {
                "module": module,
                "bars": [
                    {"height": round(n / top, 4), "label": f"{i * width:.2f} to {(i + 1) * width:.2f} rad: {n} planes"}
                    for i, n in enumerate(bars)
                ],
            }
        )
    return drawn


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
