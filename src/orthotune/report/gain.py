"""What a language run gains and forgets: over its steps, one against the other, and after rewinding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orthotune.report.curves import BOTTOM, HEIGHT, LEFT, TOP, _chart, _mapping, _n, ticks
from orthotune.report.wording import change, figure

#: Key of a loss in metrics.jsonl -> key of its change since step 0, and the sign in which that is positive.
CHANGES = {"new_nats": ("gain", -1), "old_nats": ("forgetting", 1)}
CURVES = (("gain", "gain, target domain", "new"), ("forgetting", "forgetting, source domain", "old"))
#: Width of the plot of one against the other.
WIDTH = 320
#: Strengths that are listed one by one.
LISTED = 8


def gain_and_forgetting(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The plots of gain and forgetting.

    Args:
        lines: the lines of ``metrics.jsonl``; older ones have the losses of the domains alone.

    Returns:
        ``chart`` over the steps, and ``path``, one against the other; each None without two measurements.

    Example:
        >>> lines = [{"step": 0, "new_nats": 3.0, "old_nats": 2.0}, {"step": 9, "new_nats": 2.5, "old_nats": 2.1}]
        >>> gain_and_forgetting(lines)["path"]["dots"][1][2]
        'step 9: gain +0.500, forgetting +0.100'
    """
    measured = with_changes(lines)
    chart = _chart("Gain and forgetting", measured, CURVES)
    if chart is not None:  # a sign and three digits have no room beside the axis on a phone
        chart["ticks"] = [(y, f"{float(text):.2g}") for y, text in chart["ticks"]]
    return {"chart": chart, "path": _path(measured)}


def rewound(run: Mapping[str, Any]) -> dict[str, Any] | None:
    """The figures of a rewinding for the template: ``rows`` and a sentence about the ``strengths``; None without one.

    Args:
        run: the record of a run.
    """
    found = _mapping(run.get("rewound"))
    if not found:
        return None
    before, strengths = _mapping(found.get("as_trained")), _mapping(found.get("strengths"))
    named = [f"{name} {figure(value)}" for name, value in list(strengths.items())[:LISTED]]
    rest = f" and {len(strengths) - LISTED} more" if len(strengths) > LISTED else ""
    rows = [("strength 1, as trained", before), ("chosen strengths", found)]
    return {
        "rows": [(name, row.get("gain"), row.get("forgetting")) for name, row in rows],
        "strengths": f"Strengths: {', '.join(named)}{rest}." if named else "",
    }


def with_changes(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The lines with ``gain`` and ``forgetting`` where a loss of a domain was measured.

    Args:
        lines: the lines of ``metrics.jsonl``.
    """
    first: dict[str, float] = {}
    found = []
    for line in lines:
        line = dict(line)
        for loss, (name, sign) in CHANGES.items():
            value = _n(line.get(loss))
            if value is not None:
                line.setdefault(name, sign * (value - first.setdefault(loss, value)))
        found.append(line)
    return found


def _path(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    triples = [(_n(line.get("step")), _n(line.get("forgetting")), _n(line.get("gain"))) for line in lines]
    points = [(step, x, y) for step, x, y in triples if step is not None and x is not None and y is not None]
    if len(points) < 2:
        return None
    (left, right), (low, high) = (_range([point[axis] for point in points]) for axis in (1, 2))

    def pixel(x: float, y: float) -> tuple[float, float]:
        across = LEFT + (x - left) / (right - left) * (WIDTH - LEFT - 8)
        return round(across, 1), round(TOP + (high - y) / (high - low) * (HEIGHT - BOTTOM - TOP), 1)

    dots = [(*pixel(x, y), f"step {s:g}: gain {change(y)}, forgetting {change(x)}") for s, x, y in points]
    ends = [dots[0], dots[-1]]
    names = [f"step {points[0][0]:g}", f"step {points[-1][0]:g}"]
    return {
        "line": "M" + "L".join(f"{a},{b}" for a, b, _ in dots),
        "dots": dots,
        # A path mostly leads up and to the right: its first step is named below the point, its last one above.
        "names": [
            (a + (6 if a < WIDTH / 2 else 0), b + place, name, "start" if a < WIDTH / 2 else "end")
            for (a, b, _), name, place in zip(ends, names, (14, -8), strict=True)
        ],
        "first": f"{points[0][0]:g}",
        "last": f"{points[-1][0]:g}",
        "ticks": [(pixel(left, value)[1], text) for value, text in ticks(low, high, ".2f")],
        "steps": [(pixel(value, low)[0], text) for value, text in ticks(left, right, ".2f")],
    }


def _range(values: Sequence[float]) -> tuple[float, float]:
    margin = 0.12 * (max(values) - min(values)) or 0.05
    return min(values) - margin, max(values) + margin
