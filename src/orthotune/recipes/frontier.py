"""A comparison as a table in CSV and as a picture: gain on the new domain against forgetting on the old."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from orthotune.training.run_directory import appearing

Row = dict[str, Any]
LOOKS = {
    "oft": ("#1b7837", "o"),
    "coft": ("#7fbf7b", "s"),
    "oft+magnitude": ("#2166ac", "P"),
    "lora": ("#762a83", "^"),
    "full": ("#e08214", "D"),
    "none": ("#555555", "x"),
}
NAMES = {
    "oft": "OFT",
    "coft": "COFT",
    "oft+magnitude": "OFT + magnitude",
    "lora": "LoRA",
    "full": "full finetuning",
    "none": "no finetuning",
}


def write_table(rows: Sequence[Row], path: Path) -> None:
    """Write one line per run; what was not measured is empty."""
    with appearing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def frontier(rows: Sequence[Row]) -> dict[str, list[tuple[float, float, float]]]:
    """For each method (learning rate, forgetting, gain) by rising learning rate, means over the seeds.

    Units: nats per token. Runs in which a domain was not measured, or that diverged, are left out.
    """
    found: dict[str, list[tuple[float, float, float]]] = {}
    measured = [row for row in rows if row["gain"] is not None and row["forgetting"] is not None]
    order = list(dict.fromkeys(row["method"] for row in measured))
    cells = {(row["method"], row["learning_rate"]) for row in measured}
    for method, rate in sorted(cells, key=lambda cell: (order.index(cell[0]), cell[1])):
        same = [row for row in measured if (row["method"], row["learning_rate"]) == (method, rate)]
        point = (rate, fmean(row["forgetting"] for row in same), fmean(row["gain"] for row in same))
        found.setdefault(method, []).append(point)
    return found


def draw_frontier(rows: Sequence[Row], path: Path) -> None:
    """Write the picture: one line per method through its learning rates, up and left is better."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for method, points in frontier(rows).items():
        colour, marker = LOOKS.get(method, ("#555555", "x"))
        forgetting, gain = [point[1] for point in points], [point[2] for point in points]
        axes.plot(forgetting, gain, color=colour, marker=marker, linewidth=1.6, label=NAMES.get(method, method))
        for rate, x, y in points:
            axes.annotate(f"{rate:g}", (x, y), textcoords="offset points", xytext=(6, -10), fontsize=8, color=colour)
        for row in rows:
            if row["method"] == method and row["gain"] is not None and row["forgetting"] is not None:
                axes.plot(row["forgetting"], row["gain"], color=colour, marker=marker, markersize=3, alpha=0.4)
    axes.axvline(0, color="#9e9e9e", linewidth=0.8, linestyle=":")
    axes.set_title("Learned against forgotten (labels: learning rate; up and left is better)", fontsize=11)
    axes.set_xlabel("forgetting on the old domain, nats/token")
    axes.set_ylabel("gain on the new domain, nats/token")
    axes.margins(0.12)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="best")
    with appearing(path) as partial:
        figure.savefig(partial, format="png", dpi=130)
