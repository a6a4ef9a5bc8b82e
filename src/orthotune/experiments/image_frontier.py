"""Drawings of a comparison on the image world: what was learned against what was kept, by steps, and the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from orthotune.experiments.axes import Axes, Axis, Row
from orthotune.experiments.frontier import NAMES, looks, write_figure
from orthotune.experiments.summary import points_of

Titles = Mapping[str, str]
Curves = Mapping[str, Sequence[Mapping[str, Any]]]
FRONTIER, CURVES, FIDELITY, CHANGE = "frontier.png", "convergence.png", "fidelity.png", "change.png"


def draw_all(
    titles: Titles, plane: tuple[str, str], pair: tuple[str, str], rows: Sequence[Row], curves: Curves, folder: Path
) -> None:
    """Write the four images into ``folder``.

    Args:
        titles: of the scores.
        plane: what was learned, what was kept.
        pair: two further scores, to the right and upwards.
        rows: of every run, the base model last.
        curves: for chosen runs that were scored while they trained, the lines of metrics with these scores.
        folder: where they go.
    """
    learned, kept = plane
    draw_plane(rows, kept, learned, titles, folder / FRONTIER)
    draw_plane(rows, *pair, titles, folder / FIDELITY)
    if curves:
        names = list(dict.fromkeys((learned, *pair, kept)))
        draw_curves(names, titles, rows, curves, folder / CURVES)
    draw_change(titles, rows, folder / CHANGE)


def means(rows: Sequence[Row], x: str, y: str) -> dict[str, list[tuple[float, float, float]]]:
    """For each method (learning rate, x, y) by rising rate, means over the seeds.

    Args:
        rows: of the runs.
        x: the column of the second value.
        y: that of the third.

    Example:
        >>> means([{"method": "oft", "learning_rate": 1.0, "seed": 0, "a": 0.2, "b": 0.4}], "a", "b")
        {'oft': [(1.0, 0.2, 0.4)]}
    """
    found = points_of(rows, Axes(Axis(y), Axis(x, larger_is_better=False)))
    return {
        method: sorted((rate, fmean(p[1] for p in seeds.values()), fmean(p[0] for p in seeds.values()))
                       for (rate, _), seeds in ways.items())
        for method, ways in found.items()
    }  # fmt: skip


def draw_plane(rows: Sequence[Row], x: str, y: str, titles: Titles, path: Path) -> None:
    """Draw two scores against each other: all runs on the validation split, the chosen ones on the test split.

    Args:
        rows: of the comparison.
        x: the score to the right.
        y: the score upwards.
        titles: of the scores.
        path: of the PNG file.
    """

    of = looks(rows)

    def draw(figure: Any) -> None:
        every, chosen = figure.subplots(1, 2, sharex=True, sharey=True)
        for method, points in means(rows, f"validation_{x}", f"validation_{y}").items():
            colour, marker = of[method]
            every.plot([p[1] for p in points], [p[2] for p in points], color=colour, marker=marker, linewidth=1.4)
            for rate, across, up in points:
                every.annotate(
                    f"{rate:g}", (across, up), textcoords="offset points", xytext=(5, -9), fontsize=7, color=colour
                )
        for method in dict.fromkeys(row["method"] for row in rows):
            same = [row for row in rows if row["method"] == method and row.get(f"test_{x}") is not None]
            if same:
                _point(
                    chosen, method, of[method], [row[f"test_{x}"] for row in same], [row[f"test_{y}"] for row in same]
                )
        every.set_title("validation, every rate (labels: learning rate)", fontsize=10)
        chosen.set_title("test, the chosen rate, seeds and their mean", fontsize=10)
        chosen.legend(frameon=False, fontsize=8)
        for axes in (every, chosen):
            axes.set_xlabel(titles[x])
        every.set_ylabel(titles[y])

    write_figure(draw, path, f"{titles[y]} against {titles[x]} (up and right is better)", (11, 4.8))


def draw_curves(names: Sequence[str], titles: Titles, rows: Sequence[Row], curves: Curves, path: Path) -> None:
    """Draw the validation scores of runs over the steps of training, as means over the seeds.

    Args:
        names: of the scores.
        titles: of the scores.
        rows: of the comparison.
        curves: run -> the lines of its metrics with these scores.
        path: of the PNG file.
    """
    of = looks(rows)

    def draw(figure: Any) -> None:
        for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
            for method in dict.fromkeys(row["method"] for row in rows if row["run"] in curves):
                runs = [curves[row["run"]] for row in rows if row["run"] in curves and row["method"] == method]
                at: dict[int, list[float]] = {}
                for line in (line for run in runs for line in run if line.get(name) is not None):
                    at.setdefault(line["step"], []).append(line[name])
                colour, marker = of[method]
                steps = sorted(at)
                axes.plot(
                    steps, [fmean(at[step]) for step in steps], color=colour, marker=marker, markersize=4,
                    linewidth=1.5, label=NAMES.get(method, method),
                )  # fmt: skip
            axes.set_title(titles[name], fontsize=10)
            axes.set_xlabel("step")
        figure.axes[0].legend(frameon=False, fontsize=8)

    write_figure(draw, path, "Validation scores while training, the chosen rates", (3.7 * len(names), 3.8))


def draw_change(titles: Titles, rows: Sequence[Row], path: Path) -> None:
    """Draw the changes of the weights by the chosen runs, and of images that are not about the task.

    Args:
        titles: of the scores.
        rows: of the comparison.
        path: of the PNG file.
    """
    columns = {
        "energy_change": "largest relative change of a layer's hyperspherical energy",
        "angle_change": "largest relative change of a layer's angles",
        **({"test_drift": titles["drift"]} if "drift" in titles else {}),
    }
    methods = [method for method in dict.fromkeys(row["method"] for row in rows) if method != "none"]

    of = looks(rows)

    def draw(figure: Any) -> None:
        for axes, (key, title) in zip(figure.subplots(1, len(columns), squeeze=False)[0], columns.items(), strict=True):
            for place, method in enumerate(methods):
                found = [row[key] for row in rows if row["method"] == method and row["chosen"]]
                found = [value for value in found if value is not None]
                if found:
                    axes.barh(place, fmean(found), color=of[method][0], height=0.6)
                    axes.plot(found, [place] * len(found), "|", color="black", markersize=9)
            axes.set_yticks(range(len(methods)), [NAMES.get(method, method) for method in methods], fontsize=8)
            axes.invert_yaxis()
            axes.set_title(title, fontsize=9)
            if key == "energy_change":
                axes.set_xscale("log")

    write_figure(draw, path, "What was changed: chosen runs, seeds and their mean", (4.4 * len(columns), 3.2))


def _point(axes: Any, method: str, look: tuple[str, str], across: list[float], up: list[float]) -> None:
    colour, marker = look
    wide, high = (stdev(values) if len(values) > 1 else 0.0 for values in (across, up))
    axes.errorbar(
        fmean(across), fmean(up), xerr=wide, yerr=high, color=colour, marker=marker, markersize=8, capsize=3,
        linewidth=1, label=NAMES.get(method, method),
    )  # fmt: skip
    if len(across) > 1:
        axes.plot(across, up, marker=marker, linestyle="", markersize=3, alpha=0.5, color=colour)
