"""The image of one run: training loss, and the loss of the new and the source domain, or the scores of its images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orthotune.files.atomic import atomic_write
from orthotune.runs.metrics_log import CHANGES, Line, measurements

NEW, OLD, TRAINING, PATH = "#1b7837", "#b2182b", "#9e9e9e", "#1f5fa8"


def draw_curve(lines: Sequence[Line], path: Path, title: str) -> None:
    """Write ``lines`` of metrics as a PNG: the losses of both domains, and what is gained and forgotten since step 0.

    Below the losses, gain and forgetting are plotted over the steps, and, where both were measured, against each other:
    a path through the run that is better the further it leads up and the less it leads to the right.

    Units: nats per token over steps.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    measured = measurements(lines)
    changed = [line for line in measured if any(line.get(change) is not None for change in CHANGES.values())]
    figure = Figure(figsize=(10, 8.2) if changed else (10, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2 if changed else 1, 2, squeeze=False)
    figure.suptitle(title, fontsize=13, fontweight="bold")
    _draw_losses(panels[0][0], panels[0][1], lines)
    for axes in panels[0]:
        axes.set_xlabel("step")
        axes.set_ylabel("loss, nats/token")
    if changed:
        _draw_changes(panels[1][0], changed)
        _draw_path(panels[1][1], changed)
    for axes in panels.flat:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png", dpi=130)


def _draw_losses(learning: Any, forgetting: Any, lines: Sequence[Line]) -> None:
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
            _write_not_measured(axes)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, fontsize=10)
    learning.set_title("What was learned", fontsize=12)
    forgetting.set_title("What was forgotten", fontsize=12)


def _draw_changes(axes: Any, changed: Sequence[Line]) -> None:
    for change, colour, marker in (("gain", NEW, "o"), ("forgetting", OLD, "s")):
        points = [(line["step"], line[change]) for line in changed if line.get(change) is not None]
        if points:
            axes.plot(
                *zip(*points, strict=True), color=colour, marker=marker, markersize=4, linewidth=1.8, label=change
            )
            axes.annotate(
                f"{points[-1][1]:+.3f}", points[-1], textcoords="offset points", xytext=(0, 8), ha="center", fontsize=10
            )
    axes.axhline(0, color=TRAINING, linestyle=":", linewidth=1)
    axes.margins(y=0.15)
    axes.legend(frameon=False, fontsize=10)
    axes.set_title("Gain and forgetting since step 0", fontsize=12)
    axes.set_xlabel("step")
    axes.set_ylabel("nats/token")


def _draw_path(axes: Any, changed: Sequence[Line]) -> None:
    points = [(line["forgetting"], line["gain"], line["step"]) for line in changed
              if line.get("gain") is not None and line.get("forgetting") is not None]  # fmt: skip
    axes.set_title("Gain against forgetting: up and left is better", fontsize=12)
    axes.set_xlabel("forgetting, nats/token")
    axes.set_ylabel("gain, nats/token")
    if not points:
        _write_not_measured(axes)
        return
    axes.plot([x for x, _, _ in points], [y for _, y, _ in points], color=PATH, marker="o", markersize=4, linewidth=1.8)
    for words, x, y in _named(points):
        axes.annotate(words, (x, y), textcoords="offset points", xytext=(6, -12), fontsize=10, color=PATH)
    axes.margins(x=0.2, y=0.15)


def _named(points: Sequence[tuple[float, float, int]]) -> list[tuple[str, float, float]]:
    """Labels of a path: of its ends, and of the point with the largest gain - forgetting, which is the best one."""
    best = max(points, key=lambda point: point[1] - point[0])
    chosen = sorted({points[0], best, points[-1]}, key=lambda point: point[2])
    return [(f"{'best: ' if point == best else ''}step {point[2]}", point[0], point[1]) for point in chosen]


def _write_not_measured(axes: Any) -> None:
    axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=TRAINING)


#: Losses of image models on images that are not trained on, at fixed noise -> their names in a legend.
HELD_OUT = {"held_out_loss": "held-out images", "old_held_out_loss": "held-out class images"}


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
    held = {name: [(line["step"], line[name]) for line in lines if line.get(name) is not None] for name in HELD_OUT}
    for name, points in held.items():
        if points:
            panels[0].plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=1.4, label=HELD_OUT[name])
    if training or any(held.values()):
        panels[0].legend(frameon=False, fontsize=9)
    panels[0].set_title("Loss" if any(held.values()) else "Training loss", fontsize=11)
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
