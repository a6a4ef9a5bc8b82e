"""A comparison as an image: what is gained against what is forgotten; and the colour and marker of each method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from orthotune.experiments.axes import AXES, Axes, Row
from orthotune.experiments.frontier_area import frontier_of, means
from orthotune.experiments.summary import points_of
from orthotune.files.atomic import atomic_write

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
#: Colours of variants.
VARIANTS = ("#0571b0", "#ca0020", "#b8860b", "#008080", "#d01c8b", "#4d4d4d", "#5e3c99", "#a6611a")


def look(name: str, place: int) -> tuple[str, str]:
    """Colour and marker of a method, or of the variant that is the ``place``-th method of a comparison."""
    return LOOKS.get(name, (VARIANTS[place % len(VARIANTS)], "ovP^DXs*"[place % 8]))


def looks(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """The look of every method of ``rows``, in their order."""
    return {name: look(name, place) for place, name in enumerate(dict.fromkeys(row["method"] for row in rows))}


def draw_frontier(rows: Sequence[Row], path: Path, axes: Axes = AXES) -> None:
    """Write the image: every run of every method, a line along its frontier.

    Where the frontiers were measured on test data, these are in a second panel.

    Args:
        rows: of a comparison.
        path: of the PNG file.
        axes: of the comparison.
    """
    tested = any(axes.point(row, "test_") is not None for row in rows)

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, 1 + tested, squeeze=False, sharex=True, sharey=True)[0]
        of = looks(rows)
        _panel(panels[0], rows, of, axes, "")
        panels[0].set_title("validation data: every run, and the means that none beats", fontsize=10)
        if tested:
            _panel(panels[1], [row for row in rows if row["chosen"]], of, axes, "test_")
            panels[1].set_title("test data: what was chosen on the validation data", fontsize=10)
        panels[0].set_ylabel(axes.gain.label)
        for panel in panels:
            panel.set_xlabel(axes.forgetting.label)
        if panels[-1].get_legend_handles_labels()[0]:
            panels[-1].legend(frameon=False, loc="best", fontsize=9)

    write_figure(draw, path, _title(axes), (12.4 if tested else 7.2, 5.2), dpi=130, weight="normal")


def draw_rungs(rows: Sequence[Row], path: Path, axes: Axes = AXES) -> None:
    """Write the image of several comparisons: a panel for each, with its frontiers.

    A panel shows test data where its frontiers were measured on them. The panels have scales of their own: nats per
    token of different models and texts are not compared with each other.

    Args:
        rows: of all comparisons, with the column ``rung``.
        path: of the PNG file.
        axes: of the comparisons.
    """
    names = list(dict.fromkeys(row["rung"] for row in rows))
    of = looks(rows)

    def draw(figure: Any) -> None:
        panels = figure.subplots(1, len(names), squeeze=False)[0]
        for name, panel in zip(names, panels, strict=True):
            own = [row for row in rows if row["rung"] == name]
            tested = any(axes.point(row, "test_") is not None for row in own)
            _panel(panel, [row for row in own if row["chosen"]] if tested else own, of, axes, "test_" if tested else "")
            panel.set_title(f"{name} ({'test' if tested else 'validation'} data)", fontsize=10)
            panel.set_xlabel(axes.forgetting.label)
        panels[0].set_ylabel(axes.gain.label)
        if panels[-1].get_legend_handles_labels()[0]:
            panels[-1].legend(frameon=False, loc="best", fontsize=9)

    write_figure(draw, path, _title(axes), (1.6 + 4.8 * len(names), 5.0), dpi=110, weight="normal")


def _title(axes: Axes) -> str:
    corner = {"upper": "up", "lower": "down"}
    up, _, left = axes.better.partition(" ")
    return f"Learned against forgotten ({corner[up]} and {left} is better)"


def write_figure(
    draw: Callable[[Any], None], path: Path, title: str, size: tuple[float, float], dpi: int = 120, weight: str = "bold"
) -> None:
    """Write a figure as PNG.

    Args:
        draw: puts the panels into the figure.
        path: of the file.
        title: above the panels.
        size: in inches.
        dpi: pixels per inch.
        weight: of the title.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11, fontweight=weight)
    draw(figure)
    for panel in figure.axes:
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png", dpi=dpi)


def _panel(panel: Any, rows: Sequence[Row], of: dict[str, tuple[str, str]], axes: Axes, prefix: str) -> None:
    rates = len({row.get("strength", 1.0) for row in rows}) == 1
    gain, forgetting = axes.signs
    for name, ways in points_of(rows, axes, prefix).items():
        colour, marker = of[name]
        along = means(ways, sorted(set.intersection(*(set(by_seed) for by_seed in ways.values()))))
        best = sorted(along, key=lambda way: along[way]) if prefix else frontier_of(along)
        line = [along[way] for way in best]
        if line:
            across, up = [forgetting * point[1] for point in line], [gain * point[0] for point in line]
            panel.plot(across, up, color=colour, marker=marker, linewidth=1.6, label=NAMES.get(name, name))
        for way, by_seed in ways.items():
            for gained, lost in by_seed.values():
                panel.plot(forgetting * lost, gain * gained, color=colour, marker=marker, markersize=3, alpha=0.35)
            if rates and way in along:
                at = (forgetting * along[way][1], gain * along[way][0])
                panel.annotate(f"{way[0]:g}", at, textcoords="offset points", xytext=(6, -10), fontsize=8, color=colour)
    panel.axvline(0, color="#9e9e9e", linewidth=0.8, linestyle=":")
    panel.margins(0.12)
