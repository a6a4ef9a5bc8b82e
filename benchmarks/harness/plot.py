"""The table as pictures: ratios per cell as bars, growth as lines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.cells import BASE, SAVED_TARGET, Cell, target_of
from harness.results import Row
from orthotune.files.atomic import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colour-blind safe; ours are green, PEFT's are not.
LOOKS = {
    "frozen": ("frozen model", "#9e9e9e"),
    "frozen_compiled": ("frozen model, compiled", "#bdbdbd"),
    "lora": ("PEFT LoRA", "#762a83"),
    "lora_compiled": ("PEFT LoRA, compiled", "#b395c4"),
    "peft_oft": ("PEFT OFT", "#e08214"),
    "peft_oft_exact": ("PEFT OFT, exact", "#fdb863"),
    "orthotune": ("orthotune, exact", "#1b7837"),
    "orthotune_compiled": ("orthotune, compiled", "#5aae61"),
    "orthotune_neumann": ("orthotune, Neumann", "#7fbf7b"),
    "peft_boft": ("PEFT BOFT", "#4393c3"),
    "peft_hra": ("PEFT HRA", "#92c5de"),
    "lora_attention": ("PEFT LoRA, attention only", "#b395c4"),
    "peft_oft_attention": ("PEFT OFT, attention only", "#e08214"),
    "orthotune_attention": ("orthotune, attention only", "#7fbf7b"),
    "orthotune_channels": ("orthotune, channels of inputs", "#00441b"),
    "orthotune_out": ("orthotune, outputs", "#5aae61"),
}
AXES = {"tokens": "tokens", "hidden": "hidden size", "layers": "layers", "block_size": "block size"}
TARGET = "#b2182b"
IN_A_LINE = 4
MIB = 2**20


def draw_bars(rows: Sequence[Row], path: Path) -> None:
    """Write a PNG with the ratios of every cell, its target where it has one, and the saved bytes of the base cell.

    Error bars run from the 10th to the 90th percentile.
    """
    cells = list(dict.fromkeys(row.cell for row in rows))
    lines = [cells[start : start + IN_A_LINE] for start in range(0, len(cells), IN_A_LINE)]
    weighed = [row for row in rows if row.cell == BASE and row.saved_bytes is not None] if len(lines) == 1 else []
    figure = _figure(8.0 + (3.4 if weighed else 0.0), 1.4 + 3.0 * len(lines))
    grid = figure.subplots(len(lines), 2 if weighed else 1, squeeze=False, width_ratios=[3, 1] if weighed else None)
    for axes, line in zip(grid[:, 0], lines, strict=True):
        _ratios(axes, rows, line, cells)
    if weighed:
        _bytes(grid[0, 1], weighed)
    _legend(figure, grid[0, 0])
    _save(figure, path)


def draw_growth(rows: Sequence[Row], path: Path) -> None:
    """Write a PNG with a panel for each quantity that varies around the base cell while all others stand still.

    Shades run from the 10th to the 90th percentile.
    """
    lines = {field: _line(rows, field) for field in AXES}
    panels = [(field, chosen) for field, chosen in lines.items() if len({row.cell for row in chosen}) > 1]
    figure = _figure(max(3.6 * len(panels), 4.0), 3.9)
    every = figure.subplots(1, max(len(panels), 1), squeeze=False)[0]
    for axes, (field, chosen) in zip(every, panels, strict=False):
        for name in _names(chosen):
            label, colour = LOOKS.get(name, (name, "#555555"))
            here = [row for row in chosen if row.contender == name]
            points = sorted((getattr(row, field), row.median, row.p10, row.p90) for row in here)
            x, middle, low, high = zip(*points, strict=True)
            axes.plot(x, middle, marker="o", markersize=4, color=colour, label=label)
            axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.axhline(1.0, color="#424242", linewidth=1)
        axes.set_xscale("log", base=2)
        values = sorted({getattr(row, field) for row in chosen})
        axes.set_xticks(values, [str(value) for value in values], minor=False)
        axes.set_xlabel(AXES[field])
        _plain(axes)
    every[0].set_ylabel("time / frozen model's")
    figure.suptitle(f"training step; {BASE.hidden} wide, {BASE.tokens} tokens, {BASE.layers} layers, {BASE.dtype}, "
                    f"b={BASE.block_size} where not on the axis", fontsize=10)  # fmt: skip
    _legend(figure, every[0])
    _save(figure, path)


def _line(rows: Sequence[Row], field: str) -> list[Row]:
    return [row for row in rows if replace(row.cell, **{field: getattr(BASE, field)}) == BASE]


def _ratios(axes: Axes, rows: Sequence[Row], cells: list[Cell], among: list[Cell]) -> None:
    floor, *names = _names(rows)
    below = LOOKS.get(floor, (floor, ""))[0]
    width = 0.82 / max(len(names), 1)
    for place, name in enumerate(names):
        label, colour = LOOKS.get(name, (name, "#555555"))
        found = [(cells.index(row.cell), row) for row in rows if row.contender == name and row.cell in cells]
        ink = "black" if sum(bytes.fromhex(colour[1:])) > 380 else "white"
        x = [index - 0.41 + width * (place + 0.5) for index, _ in found]
        # the median can lie below a percentile by rounding, and a negative error bar is refused
        spread = [[max(r.median - r.p10, 0) for _, r in found], [max(r.p90 - r.median, 0) for _, r in found]]
        axes.bar(x, [r.median for _, r in found], width * 0.92, color=colour, label=label)
        axes.errorbar(x, [r.median for _, r in found], spread, fmt="none", ecolor="#424242", elinewidth=0.8)
        for at, (_, row) in zip(x, found, strict=True):
            axes.text(at, 0.03, f"{row.median:.2f}", ha="center", va="bottom", rotation=90, fontsize=7, color=ink)
    axes.axhline(1.0, color="#424242", linewidth=1, label=below)
    targets = {index: target_of(cell, rows[0].device) for index, cell in enumerate(cells)}
    for index, target in targets.items():
        if target is not None:
            axes.plot([index - 0.45, index + 0.45], [target] * 2, color=TARGET, linestyle="--", linewidth=1.4)
    if any(target is not None for target in targets.values()):
        axes.plot([], [], color=TARGET, linestyle="--", linewidth=1.4, label="target for exact rotations")
    axes.set_xticks(range(len(cells)), [_short(cell, among) for cell in cells], fontsize=8)
    axes.set_xlim(-0.55, len(cells) - 0.45)
    axes.set_ylabel(f"time / {below}", fontsize=9)
    _plain(axes)


def _bytes(axes: Axes, rows: Sequence[Row]) -> None:
    for place, row in enumerate(rows):
        axes.bar(place, (row.saved_bytes or 0) / MIB, 0.75, color=LOOKS.get(row.contender, ("", "#555555"))[1])
        if row.contender == "lora":
            target = SAVED_TARGET * (row.saved_bytes or 0) / MIB
            axes.axhline(target, color=TARGET, linestyle="--", linewidth=1.4)
    axes.set_xticks([])
    axes.set_ylabel("saved for the backward, MiB", fontsize=9)
    axes.set_xlabel(_short(BASE, [BASE]), fontsize=8)
    _plain(axes)


def _short(cell: Cell, among: list[Cell]) -> str:
    """What tells a cell from its neighbours, in two or three lines."""
    steps = {"train": "training step", "eval": "evaluation", "decode": "decoding"}
    units = "pixels" if cell.model == "unet" else "token" if cell.tokens == 1 else "tokens"
    lines = [steps[cell.mode], f"{cell.hidden} wide, {cell.tokens} {units}"]
    rest: list[Any] = [cell.dtype] if len({c.dtype for c in among}) > 1 else []
    rest += [f"b={cell.block_size}"] if len({c.block_size for c in among}) > 1 else []
    return "\n".join(lines + ([", ".join(rest)] if rest else []))


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.contender for row in rows))


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _plain(axes: Axes) -> None:
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)


def _save(figure: Figure, path: Path) -> None:
    with atomic_write(path) as partial:
        figure.savefig(partial, format="png", dpi=130)
