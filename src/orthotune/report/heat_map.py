"""Heat maps of the layers: depth on one axis, module on the other, one cell per rotation."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

#: key in the row of a layer, title, and whether the colour scale is logarithmic
MEASURES = (
    ("angle_mean", "mean angle, rad", False),
    ("angle_max", "largest angle, rad", False),
    ("distance", "distance from identity", False),
    ("orthogonality_error", "orthogonality error, log scale", True),
    ("weight_change", "relative change of the weight", False),
    ("spectrum_change", "relative change of the spectrum, log scale", True),
    ("dead", "share of blocks that have not moved", False),
    ("saturation", "share of blocks at the COFT radius", False),
    ("gradient_norm", "gradient norm, log scale", True),
)
#: the same for the distance of two adapters
DISTANCES = (
    ("angle_mean", "mean angle between both, rad", False),
    ("angle_max", "largest angle between both, rad", False),
    ("cosine", "cosine of the stored parameters", False),
)


def place_of(layer: str, part: str = "") -> tuple[int, str]:
    """Depth and module of a layer: the first number in its name, and the name after it.

    Args:
        layer: full name of the layer.
        part: name of one rotation, where a layer has several.

    Example:
        >>> place_of("model.layers.11.self_attn.q_proj"), place_of("lm_head")
        ((11, 'self_attn.q_proj'), (0, 'lm_head'))
    """
    found = re.search(r"(?:^|\.)(\d+)(?:\.|$)", layer)
    depth, module = (int(found[1]), layer[found.end() :]) if found else (0, layer)
    module = module or layer
    return depth, f"{module} ({part})" if part else module


def places(rows: Sequence[Mapping[str, Any]]) -> list[tuple[int, str]]:
    """Depth and module of each row, unique for each row.

    The first number in a name is not unique in a UNet, whose down blocks and up blocks are numbered from 0 each. There
    the depth is the position of the block in the list, and the module is the name after its last number.

    Example:
        >>> places([{"layer": "down.0.attn.0.q"}, {"layer": "up.0.attn.0.q"}])
        [(0, 'q'), (1, 'q')]
    """
    names = [(str(row.get("layer")), str(row.get("part") or "")) for row in rows]
    found = [place_of(layer, part) for layer, part in names]
    if len(set(found)) == len(set(names)):
        return found
    order: dict[str, int] = {}
    found = []
    for layer, part in names:
        cut = max((at.end() for at in re.finditer(r"\.\d+\.(?!\d)", layer)), default=0)
        block, module = layer[:cut], layer[cut:]
        found.append((order.setdefault(block, len(order)), f"{module} ({part})" if part else module))
    return found


def heat_maps(
    rows: Sequence[Mapping[str, Any]], measures: Sequence[tuple[str, str, bool]] = MEASURES
) -> list[dict[str, Any]]:
    """One heat map for each measure that the rows have.

    Args:
        rows: the layers, as ``orthotune inspect --json`` gives them.
        measures: key, title, and whether the colour scale is logarithmic.

    Returns:
        Per map ``title``, ``depths``, and ``lines`` of cells by module. A cell has ``value``, ``shade`` from 0 to 1
        and ``label``; it is None where the model has no such layer.
    """
    where = places(rows)
    names = {place: str(row.get("layer")) for place, row in zip(where, rows, strict=True)}
    depths, modules = sorted({depth for depth, _ in where}), list(dict.fromkeys(module for _, module in where))
    maps = []
    for key, title, logarithmic in measures:
        values = {place: float(row[key]) for place, row in zip(where, rows, strict=True) if is_number(row.get(key))}
        if not values or (len(set(values.values())) == 1 and next(iter(values.values())) == 0):
            continue
        shades = _shades(values, logarithmic)
        lines = [
            (
                module,
                [
                    {
                        "value": values[depth, module], "shade": shades[depth, module],
                        "label": f"{names[depth, module]}: {values[depth, module]:.3g}",
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


def is_number(value: Any) -> bool:
    """Whether a value of a record is a finite number.

    Example:
        >>> is_number(0.5), is_number(True), is_number(float("nan"))
        (True, False, False)
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
