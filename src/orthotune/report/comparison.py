"""The record of a comparison as the page shows it: the best runs, the frontier, and a table of the measured columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orthotune.report.frontier import Plane, frontier, plane_of
from orthotune.report.heat_map import is_number
from orthotune.report.wording import change, count, duration, figure, plain, small, spoken

Row = Mapping[str, Any]
#: Columns that describe a run, then columns that describe its change of the weights: name, heading, format.
DESCRIPTION = (
    ("method", "method", plain),
    ("learning_rate", "learning rate", plain),
    ("trainable_parameters", "parameters", count),
)
WEIGHTS = (
    ("orthogonality_error", "‖RRᵀ−I‖", small),
    ("energy_change", "energy change", small),
    ("angle_change", "angle change", small),
    ("train_seconds", "training", duration),
)
#: Most further columns in a table.
MOST = 12
#: Columns that are not shown a second time, or do not matter for a comparison.
HIDDEN = {name for name, _, _ in (*DESCRIPTION, *WEIGHTS)} | {"run", "seconds", "steps", "chosen", "seed"}


def comparison(record: Row) -> dict[str, Any]:
    """Values for the template: ``rows``, ``cards``, ``frontier`` and ``table``; empty without a comparison."""
    rows = [row for row in record.get("runs") or [] if isinstance(row, Mapping)]
    plane = plane_of(record)
    wanted = plane or Plane("gain", "forgetting", "gain", "forgetting", "upper left")
    scored = [row for row in rows if is_number(row.get(wanted.learned)) and is_number(row.get(wanted.kept))]
    # The base model has no learning rate: it forgets nothing and would always be the mildest run.
    trained = [row for row in scored if row.get("learning_rate") is not None]
    best = max(trained, key=lambda row: row[wanted.learned], default=None)
    return {
        "rows": rows,
        "nats": wanted.learned == "gain",
        "cards": _cards(trained, wanted, best),
        "frontier": frontier(rows, plane) if plane else None,
        "table": _table(rows, wanted, best) if rows else None,
    }


def _cards(trained: Sequence[Row], plane: Plane, best: Row | None) -> list[tuple[str, str, bool]]:
    """A figure, its description, and whether the figure is good."""
    if best is None:
        return []
    sign = -1 if plane.better.endswith("left") else 1
    mildest = max(trained, key=lambda row: sign * row[plane.kept])
    title, other = ("least forgetting", "gain") if plane.kept == "forgetting" else (
        f"best {plane.kept_title}", plane.learned_title
    )  # fmt: skip
    text = change if plane.learned == "gain" else figure
    return [
        (
            text(best[plane.learned]),
            f"best {plane.learned_title}: {_run(best)}, {plane.kept_title} {text(best[plane.kept])}",
            True,
        ),
        (text(mildest[plane.kept]), f"{title}: {_run(mildest)}, {other} {text(mildest[plane.learned])}", False),
    ]


def _run(row: Row) -> str:
    rate = row.get("learning_rate")
    return f"{plain(row.get('method'))} at {plain(rate)}" if rate is not None else plain(row.get("method"))


def _table(rows: Sequence[Row], plane: Plane, best: Row | None) -> dict[str, Any]:
    axes = [(plane.learned, plane.learned_title), (plane.kept, plane.kept_title)]
    if plane.learned == "gain":
        columns: list[Any] = [(name, title, change) for name, title in axes]
    else:
        names = dict.fromkeys(key for row in rows for key, value in row.items() if is_number(value))
        more = [name for name in names if name not in HIDDEN and name not in (plane.learned, plane.kept)]
        columns = [(name, title, figure) for name, title in axes if name in names]
        columns += [(name, spoken(name), figure) for name in more[:MOST]]
    columns = [*DESCRIPTION, *columns, *WEIGHTS]
    lines = [
        [
            {"words": text(row.get(name)), "number": name != "method", "best": row is best and name == plane.learned}
            for name, _, text in columns
        ]
        for row in rows
    ]
    return {
        "head": [(title, name != "method") for name, title, _ in columns],
        "lines": lines,
        "title": plane.learned_title,
    }
