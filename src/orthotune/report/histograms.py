"""Histograms of the rotation angles, one per module, all on the same axis from 0 to the largest angle."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from orthotune.report.heat_map import is_number, places


def histograms(rows: Sequence[Mapping[str, Any]], top: Any = None) -> list[dict[str, Any]]:
    """One histogram per module, over the angles of all its layers.

    Args:
        rows: the layers, each with ``angle_histogram``: counts in bars of equal width from 0 to ``top``. Older records
            have ``angle_counts`` instead, from 0 to pi, whose empty bars at the end are skipped.
        top: the upper end of ``angle_histogram`` in radians, the same for all rows.

    Returns:
        ``module``; ``bars`` with ``height`` from 0 to 1 and ``label``; ``top``, the end of the axis in radians.
    """
    key, end = ("angle_histogram", float(top)) if is_number(top) and top > 0 else ("angle_counts", math.pi)
    counts: dict[str, list[int]] = {}
    for row, (_, module) in zip(rows, places(rows), strict=True):
        bars_of_row = row.get(key)
        if not isinstance(bars_of_row, list | tuple) or not bars_of_row or not all(map(is_number, bars_of_row)):
            continue
        total = counts.setdefault(module, [0] * len(bars_of_row))
        counts[module] = [a + int(b) for a, b in zip(total, bars_of_row, strict=False)]
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
