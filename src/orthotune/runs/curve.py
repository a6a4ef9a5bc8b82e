"""The image of one run: training loss, and the loss of the new and the source domain, or the scores of its images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orthotune.files.atomic import atomic_write
from orthotune.runs.metrics_log import Line

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
        (learning, "new_nats", NEW, "target domain, held out"),
        (forgetting, "old_nats", OLD, "source domain, held out"),
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
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png", dpi=130)


def draw_scores(
    lines: Sequence[Line], path: Path, title: str, names: Sequence[str] = (), heading: str = "Scores of its images"
) -> None:
    """Write ``lines`` of metrics as a PNG: training loss, its running mean, and the scores ``names``.

    Units: the training loss of the recipe; of image models mean squared error, as the model's family weighs it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2) if names else (6, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2 if names else 1, squeeze=False)[0]
    figure.suptitle(title, fontsize=12, fontweight="bold")
    training = [(line["step"], line["train_loss"]) for line in lines if line.get("train_loss") is not None]
    if training:
        panels[0].plot(*zip(*training, strict=True), color=TRAINING, linewidth=0.6, label="training batch")
        panels[0].plot(*zip(*_smoothed(training), strict=True), color=NEW, linewidth=1.8, label="running mean")
        panels[0].legend(frameon=False, fontsize=9)
    panels[0].set_title("Training loss", fontsize=11)
    for name in names:
        points = [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        panels[1].plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.4, label=name)
    if names:
        panels[1].set_title(heading, fontsize=11)
        panels[1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    for axes in panels:
        axes.set_xlabel("step")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png", dpi=130)


def _smoothed(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """The mean over the tenth of the points up to each one: the loss of a single step is noisy."""
    size, found = max(1, len(points) // 10), list[tuple[int, float]]()
    for number, (step, _) in enumerate(points, start=1):
        recent = [value for _, value in points[max(0, number - size) : number]]
        found.append((step, sum(recent) / len(recent)))
    return found
