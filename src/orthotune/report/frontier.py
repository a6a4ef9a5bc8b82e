"""The plot of a comparison: what each run learned over what it kept or forgot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orthotune.report.curves import BOTTOM, COLOURS, HEIGHT, LEFT, TOP, WIDTH, _mapping, _n, ticks
from orthotune.report.wording import figure, spoken


@dataclass(frozen=True)
class Plane:
    """The two columns of a comparison that are plotted against each other.

    Args:
        learned: name of the column on the vertical axis.
        kept: name of the column on the horizontal axis.
        learned_title: label of the vertical axis.
        kept_title: label of the horizontal axis.
        better: the corner in which the best runs lie, such as "upper left".
    """

    learned: str
    kept: str
    learned_title: str
    kept_title: str
    better: str


#: Tried in this order if the record names no axes: language models, then image models.
PLANES = (
    Plane("gain", "forgetting", "gain", "forgetting", "upper left"),
    *(
        Plane(
            f"{split}_{learned}", f"{split}_kept", spoken(f"{split}_{learned}"), spoken(f"{split}_kept"), "upper right"
        )
        for learned in ("prompt_fidelity", "mask_iou")
        for split in ("validation", "test")
    ),
)


def plane_of(comparison: Mapping[str, Any]) -> Plane | None:
    """The plane that the record of a comparison names, or the first known plane whose columns two runs have.

    A record names it under ``axes``: ``{"learned": column, "kept": column}``, with ``learned_title``, ``kept_title``
    and ``better`` for another description.
    """
    rows = [row for row in comparison.get("runs") or () if isinstance(row, Mapping)]
    axes = _mapping(comparison.get("axes"))
    known = PLANES
    if axes.get("learned") and axes.get("kept"):
        learned, kept = str(axes["learned"]), str(axes["kept"])
        up, right = (str(axes.get(f"{name}_title") or spoken(axes[name])) for name in ("learned", "kept"))
        known = (Plane(learned, kept, up, right, str(axes.get("better") or "upper right")), *PLANES)
    return next((plane for plane in known if len(measured(rows, plane)) > 1), None)


def measured(rows: Sequence[Mapping[str, Any]], plane: Plane) -> list[Mapping[str, Any]]:
    """The rows that have a number in both columns of a plane.

    Args:
        rows: the runs of a comparison.
        plane: the two columns.
    """
    return [row for row in rows if _n(row.get(plane.learned)) is not None and _n(row.get(plane.kept)) is not None]


def frontier(rows: Sequence[Mapping[str, Any]], plane: Plane = PLANES[0]) -> dict[str, Any] | None:
    """Values for the template: one point per run.

    Args:
        rows: the runs of a comparison.
        plane: the two columns to plot.

    Returns:
        Points, methods and ticks in pixels of the plot; None with fewer than two runs that have both columns.
    """
    kept = measured(rows, plane)
    if len(kept) < 2:
        return None
    xs, ys = [float(row[plane.kept]) for row in kept], [float(row[plane.learned]) for row in kept]
    methods = list(dict.fromkeys(str(row.get("method")) for row in kept))
    (left, right), (low, high) = ((min(v) - 0.05 * _width(v), max(v) + 0.05 * _width(v)) for v in (xs, ys))

    def across(x: float) -> float:
        return round(LEFT + (x - left) / (right - left) * (WIDTH - LEFT - 8), 1)

    def up(y: float) -> float:
        return round(TOP + (high - y) / (high - low) * (HEIGHT - BOTTOM - TOP), 1)

    points = [
        {
            "x": across(x),
            "y": up(y),
            "method": methods.index(str(row.get("method"))) % len(COLOURS),
            "label": f"{row.get('method')} at {figure(row.get('learning_rate'))}: "
            f"{plane.learned_title} {figure(y)}, {plane.kept_title} {figure(x)}",
        }
        for row, x, y in zip(kept, xs, ys, strict=True)
    ]
    return {
        "plane": plane,
        "points": points,
        "methods": methods,
        "ticks": [(up(value), text) for value, text in ticks(low, high, ".2f")],
        "steps": [(across(value), text) for value, text in ticks(left, right, ".2f")],
    }


def _width(values: Sequence[float]) -> float:
    return max(values) - min(values) or 1.0
