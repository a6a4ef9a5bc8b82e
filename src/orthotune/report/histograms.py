"""Histograms of the angles of a model's modules, all over one axis: from 0 to the largest angle."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from orthotune.report.heat_map import is_number, places


def histograms(rows: Sequence[Mapping[str, Any]], top: Any = None) -> list[dict[str, Any]]:
    """Angles of all layers of a module together.

    Args:
        rows: of layers, with ``angle_histogram``, counts in equal bars from 0 to ``top``; or, where a record has none,
            with ``angle_counts``, from 0 to pi, of which the empty end is skipped.
        top: radians; the same for all rows.

    Returns:
        ``module``; ``bars`` with ``height`` from 0 to 1 and ``label``; ``top``, the end of the axis in radians.
    """
    key, end = ("angle_histogram", float(top)) if is_number(top) and top > 0 else ("angle_counts", math.pi)
    counts: dict[str, list[int]] = {}
    for row, (_, module) in zip(rows, places(rows), strict=True):
        found = row.get(key)
        if not isinstance(found, list | tuple) or not found or not all(map(is_number, found)):
            continue
        held = counts.setdefault(module, [0] * len(found))
        counts[module] = [a + int(b) for a, b in zip(held, found, strict=False)]
    if not counts:
        return []
    bars = min(map(len, counts.values()))
    width = end / bars
    if key == "angle_counts":
        bars = max((i + 1 for held in counts.values() for i, n in enumerate(held[:bars]) if n), default=bars)
    return [
        {"module": module, "bars": _bars(held[:bars], width), "top": bars * width} for module, held in counts.items()
    ]


def _bars(counts: Sequence[int], width: float) -> list[dict[str, Any]]:
    most = max(counts) or 1
    return [
        {"height": round(n / most, 4), "label": f"{i * width:.3g} to {(i + 1) * width:.3g} rad: {n} planes"}
        for i, n in enumerate(counts)
    ]
