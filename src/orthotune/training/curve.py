"""The picture of one run: training loss, and the loss of the new and the old domain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orthotune.training.metrics_log import Line
from orthotune.training.run_directory import appearing

NEW, OLD, TRAINING = "#1b7837", "#b2182b", "#9e9e9e"


def draw_curve(lines: Sequence[Line], path: Path, title: str) -> None:
    """Write ``lines`` of metrics as a PNG with one panel for learning and one for forgetting.

    Units: nats per token over steps.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    learning, forgetting = figure.subplots(1, 2)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    training = [(line["step"], line["train_loss"]) for line in lines if line.get("train_loss") is not None]
    if training:
        learning.plot(*zip(*training, strict=True), color=TRAINING, linewidth=0.8, label="training batch")
    for axes, key, colour, name in (
        (learning, "new_nats", NEW, "new domain, held out"),
        (forgetting, "old_nats", OLD, "old domain, held out"),
    ):
        points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4, linewidth=1.8, label=name)
            axes.axhline(points[0][1], color=colour, linestyle=":", linewidth=1, label=f"before: {points[0][1]:.3f}")
            axes.annotate(f"{points[-1][1]:.3f}", points[-1], textcoords="offset points", xytext=(0, 8), ha="center")
            axes.margins(y=0.15)
        else:
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=TRAINING)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=9)
    learning.set_title("What was learned", fontsize=11)
    forgetting.set_title("What was forgotten", fontsize=11)
    for axes in (learning, forgetting):
        axes.set_xlabel("step")
        axes.set_ylabel("loss, nats/token")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    with appearing(path) as partial:
        figure.savefig(partial, format="png", dpi=130)
