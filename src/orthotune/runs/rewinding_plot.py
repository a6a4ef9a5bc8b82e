"""The image of a rewinding: gain against forgetting along one strength, and the strengths that were chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from orthotune.files.atomic import atomic_write

_LINE, _CHOSEN = "#1b7837", "#ca0020"


def draw_rewinding(
    curve: Sequence[Mapping[str, float]],
    rows: Mapping[str, Mapping[str, float]],
    path: Path,
    title: str,
    unit: str = "nats/token",
) -> None:
    """Write a PNG with two panels: gain and forgetting over the strength, and one against the other.

    Args:
        curve: points with ``strength``, ``gain`` and ``forgetting``.
        rows: what was measured on the other half of the data, by name.
        path: the image.
        title: its first line.
        unit: of gain and forgetting.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    over, against = figure.subplots(1, 2)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    at = [point["strength"] for point in curve]
    over.plot(at, [point["gain"] for point in curve], color=_LINE, marker="o", label="gain, target domain")
    over.plot(
        at, [point["forgetting"] for point in curve], color="#b2182b", marker="s", label="forgetting, source domain"
    )
    over.axhline(0, color="#9e9e9e", linewidth=0.8, linestyle=":")
    over.set_xlabel("strength of all layers (0: base, 1: as trained)")
    over.set_ylabel(unit)
    over.set_title("data that the strengths were chosen by", fontsize=10)
    over.legend(frameon=False, fontsize=9)
    against.plot([p["forgetting"] for p in curve], [p["gain"] for p in curve], color=_LINE, marker="o", alpha=0.5)
    for point in curve:
        against.annotate(
            f"{point['strength']:g}", (point["forgetting"], point["gain"]), textcoords="offset points",
            xytext=(5, -11), fontsize=8, color=_LINE,
        )  # fmt: skip
    looks = {"as trained": ("#555555", "X"), "one strength": (_LINE, "P"), "chosen": (_CHOSEN, "*")}
    for name, row in rows.items():
        colour, marker = looks.get(name, ("#555555", "D"))
        against.plot(
            row["forgetting"], row["gain"], color=colour, marker=marker, markersize=11, linestyle="",
            label=f"{name}, other data",
        )  # fmt: skip
    against.set_xlabel(f"forgetting, {unit}")
    against.set_ylabel(f"gain, {unit}")
    against.set_title("up and left is better", fontsize=10)
    against.legend(frameon=False, fontsize=9)
    for axes in (over, against):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png", dpi=130)
