"""A comparison as a table in CSV and as a picture: gain on the new domain against forgetting on the old."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from orthotune.experiments.frontier_area import frontier_of, means
from orthotune.experiments.summary import points_of
from orthotune.files.atomic import atomic_write

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
#: Colours of contenders that are no method of their own.
VARIANTS = ("#0571b0", "#ca0020", "#b8860b", "#008080", "#d01c8b", "#4d4d4d", "#5e3c99", "#a6611a")


def look(name: str, place: int) -> tuple[str, str]:
    """Colour and marker of a method, or of the variant that is the ``place``-th contender."""
    return LOOKS.get(name, (VARIANTS[place % len(VARIANTS)], "ovP^DXs*"[place % 8]))


def looks(rows: Sequence[Row]) -> dict[str, tuple[str, str]]:
    """The look of every contender of ``rows``, in their order."""
    return {name: look(name, place) for place, name in enumerate(dict.fromkeys(row["method"] for row in rows))}


#: Titles of the axes of a language model, upwards and to the right.
TEXT = ("gain on the new domain, nats/token", "forgetting on the old domain, nats/token")


def draw_frontier(rows: Sequence[Row], path: Path, titles: tuple[str, str] = TEXT) -> None:
    """Write the image: every run of every contender, a line along its frontier; up and left is better.

    Where the frontiers were measured on test data, these are in a second panel. ``titles`` is as :data:`TEXT`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    tested = any(row.get("test_gain") is not None for row in rows)
    figure = Figure(figsize=(12.4 if tested else 7.2, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 1 + tested, squeeze=False, sharex=True, sharey=True)[0]
    of = looks(rows)
    _panel(panels[0], rows, of, "gain", "forgetting", "validation data: every run, and the means that none beats")
    if tested:
        own = [row for row in rows if row["chosen"]]
        _panel(panels[1], own, of, "test_gain", "test_forgetting", "test data: what was chosen on the validation data")
    panels[0].set_ylabel(titles[0])
    for axes in panels:
        axes.set_xlabel(titles[1])
    figure.suptitle("Learned against forgotten (up and left is better)", fontsize=11)
    if panels[-1].get_legend_handles_labels()[0]:
        panels[-1].legend(frameon=False, loc="best", fontsize=9)
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png", dpi=130)


def _panel(
    axes: Any, rows: Sequence[Row], of: dict[str, tuple[str, str]], gain: str, forgetting: str, title: str
) -> None:
    contenders = points_of(rows, gain, forgetting)
    rates = len({row.get("strength", 1.0) for row in rows}) == 1
    for name, ways in contenders.items():
        colour, marker = of[name]
        along = means(ways, sorted(set.intersection(*(set(by_seed) for by_seed in ways.values()))))
        best = frontier_of(along) if gain == "gain" else sorted(along, key=lambda way: along[way])
        line = [along[way] for way in best]
        if line:
            across, up = [point[1] for point in line], [point[0] for point in line]
            axes.plot(across, up, color=colour, marker=marker, linewidth=1.6, label=NAMES.get(name, name))
        for way, by_seed in ways.items():
            for gained, lost in by_seed.values():
                axes.plot(lost, gained, color=colour, marker=marker, markersize=3, alpha=0.35)
            if rates and way in along:
                rate = cast(tuple[float, float], way)[0]
                at = (along[way][1], along[way][0])
                axes.annotate(f"{rate:g}", at, textcoords="offset points", xytext=(6, -10), fontsize=8, color=colour)
    axes.axvline(0, color="#9e9e9e", linewidth=0.8, linestyle=":")
    axes.set_title(title, fontsize=10)
    axes.margins(0.12)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
