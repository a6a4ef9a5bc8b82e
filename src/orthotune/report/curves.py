"""Curves over the steps of a run as plain SVG: the smoothing is computed beforehand, the page needs no script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

#: weights of the past in the moving averages that a reader can choose
SMOOTHING = (0.0, 0.6, 0.9)
#: key of a line of metrics.jsonl, legend, and class of its colour
LOSSES = (
    ("train_loss", "training batch", "training"),
    ("new_nats", "new domain, held out", "new"),
    ("old_nats", "old domain, held out", "old"),
)
ROTATIONS = (("angle_mean", "mean angle", "new"), ("angle_max", "largest angle", "old"))
WIDTH, HEIGHT, LEFT, BOTTOM = 640, 240, 46, 26
#: points that a reader can hover over
MOST = 240


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """Exponential moving average, free of the start's bias; ``weight`` is that of the past.

    Example:
        >>> smoothed([1.0, 1.0, 1.0], 0.9)[-1]
        1.0
    """
    total, norm, found = 0.0, 0.0, []
    for value in values:
        total, norm = weight * total + (1 - weight) * value, weight * norm + (1 - weight)
        found.append(total / norm)
    return found


def charts(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What can be drawn of a run's metrics: its losses, and the angles of its rotations."""
    inner = [{"step": line.get("step"), **(line.get("diagnosis") or {})} for line in lines if line.get("diagnosis")]
    found = [_chart("Loss, nats per token", lines, LOSSES), _chart("Angles, rad", inner, ROTATIONS)]
    return [chart for chart in found if chart is not None]


def _chart(title: str, lines: Sequence[Mapping[str, Any]], keys: Sequence[tuple[str, str, str]]) -> Any:
    series = {key: [(_n(line.get("step")), _n(line.get(key))) for line in lines] for key, _, _ in keys}
    points = {key: [(x, y) for x, y in found if x is not None and y is not None] for key, found in series.items()}
    drawn = [(key, name, colour) for key, name, colour in keys if len(points[key]) > 1]
    if not drawn:
        return None
    xs = [x for key, _, _ in drawn for x, _ in points[key]]
    ys = [y for key, _, _ in drawn for _, y in points[key]]
    low, high = min(ys), max(ys)
    margin = 0.06 * (high - low) or 0.5
    low, high, left, right = low - margin, high + margin, min(xs), max(max(xs), min(xs) + 1)

    def place(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - left) / (right - left) * (WIDTH - LEFT - 8)
        return round(across, 1), round(6 + (high - y) / (high - low) * (HEIGHT - BOTTOM - 6), 1)

    curves = []
    for key, name, colour in drawn:
        # A held-out loss is few points and no noise: only the training loss is smoothed.
        weights = SMOOTHING if key == "train_loss" else SMOOTHING[:1]
        paths = []
        for weight in weights:
            values = smoothed([y for _, y in points[key]], weight)
            found = [(x, y) for (x, _), y in zip(points[key], values, strict=True)]
            every = max(1, math.ceil(len(found) / MOST))
            dots = [(*place(x, y), f"step {x:g}: {name} {y:.4g}") for x, y in found[::every]]
            path = "M" + "L".join(f"{a},{b}" for a, b in (place(x, y) for x, y in found))
            paths.append({"weight": weight, "path": path, "dots": dots})
        curves.append({"name": name, "colour": colour, "paths": paths})
    ticks = [
        (place(left, low + (high - low) * part / 4)[1], f"{low + (high - low) * part / 4:.3g}") for part in range(5)
    ]
    steps = [
        (place(left + (right - left) * part / 4, low)[0], f"{left + (right - left) * part / 4:.0f}")
        for part in range(5)
    ]
    return {"title": title, "curves": curves, "ticks": ticks, "steps": steps, "width": WIDTH, "height": HEIGHT,
            "left": LEFT, "bottom": HEIGHT - BOTTOM}  # fmt: skip


def frontier(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Learned over forgotten, a point for each run; None with fewer than two runs that measured both."""
    kept = [row for row in rows if _n(row.get("gain")) is not None and _n(row.get("forgetting")) is not None]
    if len(kept) < 2:
        return None
    xs, ys = [float(row["forgetting"]) for row in kept], [float(row["gain"]) for row in kept]
    methods = list(dict.fromkeys(str(row.get("method")) for row in kept))
    spans = [(min(v) - 0.05 * (max(v) - min(v) or 1), max(v) + 0.05 * (max(v) - min(v) or 1)) for v in (xs, ys)]
    (left, right), (low, high) = spans
    points = [
        {
            "x": round(LEFT + (x - left) / (right - left) * (WIDTH - LEFT - 8), 1),
            "y": round(6 + (high - y) / (high - low) * (HEIGHT - BOTTOM - 6), 1),
            "method": methods.index(str(row.get("method"))) % 6,
            "label": f"{row.get('method')} at {row.get('learning_rate')}: gain {y:.3f}, forgetting {x:.3f}",
        }
        for row, x, y in zip(kept, xs, ys, strict=True)
    ]
    ticks = [
        (round(6 + (1 - part / 4) * (HEIGHT - BOTTOM - 6), 1), f"{low + (high - low) * part / 4:.2f}")
        for part in range(5)
    ]
    steps = [
        (round(LEFT + part / 4 * (WIDTH - LEFT - 8), 1), f"{left + (right - left) * part / 4:.2f}") for part in range(5)
    ]
    return {"points": points, "methods": methods, "ticks": ticks, "steps": steps}


def _n(value: Any) -> float | None:
    numeric = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if numeric else None
