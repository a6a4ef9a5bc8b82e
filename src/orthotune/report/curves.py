"""Curves over the steps of a run as plain SVG. Smoothed curves are computed here, so that the page needs no script."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from orthotune.report.wording import spoken

#: smoothing weights that a reader of the page can choose
SMOOTHING = (0.0, 0.6, 0.9)
#: key in metrics.jsonl, legend, CSS class of the colour
LOSSES = (
    ("train_loss", "training batch", "training"),
    ("new_nats", "target domain, held out", "new"),
    ("old_nats", "source domain, held out", "old"),
    ("held_out_loss", "held-out images", "new"),
    ("old_held_out_loss", "held-out class images", "old"),
)
ROTATIONS = (("angle_mean", "mean angle", "new"), ("angle_max", "largest angle", "old"))
#: CSS classes of the colours of all other curves, in order
COLOURS = tuple(f"m{number}" for number in range(6))
WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 640, 240, 72, 14, 28
#: most curves in one plot; more cannot be distinguished
MOST_CURVES = 5
#: most points of one curve that show a value under the mouse
MOST = 240


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """Exponential moving average with bias correction: the first value is the average of itself alone.

    Args:
        values: the curve.
        weight: of the previous average, from 0 (no smoothing) to below 1.

    Returns:
        As many values as given.

    Example:
        >>> smoothed([1.0, 1.0, 1.0], 0.9)[-1]
        1.0
    """
    total, norm, averages = 0.0, 0.0, []
    for value in values:
        total, norm = weight * total + (1 - weight) * value, weight * norm + (1 - weight)
        averages.append(total / norm)
    return averages


#: Scores of recipes whose training loss has another unit than the losses on held-out texts.
PREFERENCES = ("pair_accuracy", "auc")


def charts(lines: Sequence[Mapping[str, Any]], scores: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The plots of a run's metrics: losses, scores and the angles of the rotations.

    Args:
        lines: the lines of ``metrics.jsonl``.
        scores: keys of the scores to plot.

    Returns:
        One mapping for the template per plot; plots without data are skipped.
    """
    inner = [{"step": line.get("step"), **_mapping(line.get("diagnosis"))} for line in lines if line.get("diagnosis")]
    nats = any(key.endswith("_nats") for line in lines for key in line)
    named = [(key, spoken(key), COLOURS[number % len(COLOURS)]) for number, key in enumerate(scores)]
    apart = nats and any(name in scores for name in PREFERENCES)
    training = [entry for entry in LOSSES if entry[0] == "train_loss"]
    plots = [_chart("Training loss", lines, training)] if apart else []
    losses = [entry for entry in LOSSES if entry not in training] if apart else LOSSES
    plots.append(_chart("Loss, nats per token" if nats else "Loss", lines, losses))
    plots += [_chart("Scores", lines, named[at : at + MOST_CURVES]) for at in range(0, len(named), MOST_CURVES)]
    plots.append(_chart("Angles, rad", inner, ROTATIONS))
    return [plot for plot in plots if plot is not None]


def ticks(low: float, high: float, digits: str = ".3g") -> list[tuple[float, str]]:
    """Five evenly spaced values on an axis, each with its label.

    Args:
        low: the lower end of the axis.
        high: the upper end.
        digits: format of the labels.
    """
    values = [low + (high - low) * part / 4 for part in range(5)]
    return [(value, format(value, digits)) for value in values]


def _chart(title: str, lines: Sequence[Mapping[str, Any]], keys: Sequence[tuple[str, str, str]]) -> Any:
    series = {key: [(_n(line.get("step")), _n(line.get(key))) for line in lines] for key, _, _ in keys}
    points = {key: [(x, y) for x, y in pairs if x is not None and y is not None] for key, pairs in series.items()}
    plotted = [(key, name, colour) for key, name, colour in keys if len(points[key]) > 1]
    if not plotted:
        return None
    xs = [x for key, _, _ in plotted for x, _ in points[key]]
    ys = [y for key, _, _ in plotted for _, y in points[key]]
    low, high = min(ys), max(ys)
    margin = 0.06 * (high - low) or 0.5
    low, high, left, right = low - margin, high + margin, min(xs), max(max(xs), min(xs) + 1)

    def pixel(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - left) / (right - left) * (WIDTH - LEFT - 8)
        return round(across, 1), round(TOP + (high - y) / (high - low) * (HEIGHT - BOTTOM - TOP), 1)

    curves = []
    for key, name, colour in plotted:
        # A held-out loss has few points and little noise: only the training loss is smoothed.
        weights = SMOOTHING if key == "train_loss" else SMOOTHING[:1]
        paths = []
        for weight in weights:
            values = smoothed([y for _, y in points[key]], weight)
            curve = [(x, y) for (x, _), y in zip(points[key], values, strict=True)]
            every = max(1, math.ceil(len(curve) / MOST))
            dots = [(*pixel(x, y), f"step {x:g}: {name} {y:.4g}") for x, y in curve[::every]]
            path = "M" + "L".join(f"{a},{b}" for a, b in (pixel(x, y) for x, y in curve))
            paths.append({"weight": weight, "path": path, "dots": dots})
        curves.append({"name": name, "colour": colour, "paths": paths})
    return {
        "title": title,
        "curves": curves,
        "ticks": [(pixel(left, value)[1], text) for value, text in ticks(low, high)],
        "steps": [(pixel(value, low)[0], text) for value, text in ticks(left, right, ".0f")],
    }


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _n(value: Any) -> float | None:
    numeric = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if numeric else None
