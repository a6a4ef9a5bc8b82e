"""What ``orthotune bench SELECTION`` and ``orthotune bench adapters`` do: measure, show and write."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import torch
import typer
from rich.console import Console
from rich.table import Table

from harness import mixed_batch
from harness.cells import DTYPES, selection, target_of
from harness.contenders import contenders
from harness.predict import GPUS, predict, predict_cells
from harness.results import Row, write_rows
from harness.run import run_cell
from orthotune.errors import OrthotuneError


def run_selection(
    name: str, out: Path, repetitions: int, as_json: bool, threads: int | None = None, dtype: str | None = None
) -> None:
    """Measure the cells of a named selection; write ``NAME-DEVICE.csv`` and ``.png``.

    Args:
        name: one of ``harness.cells.SELECTIONS``.
        out: the folder for both files.
        repetitions: of every cell.
        as_json: print the rows as JSON instead of tables.
        threads: of the processor; None leaves what torch takes.
        dtype: of the models, by its name in torch; None leaves each cell's own.

    Raises:
        OrthotuneError: there is no such selection or dtype.
    """
    cells = selection(name)
    if dtype is not None:
        if dtype not in DTYPES:
            raise OrthotuneError(f"--dtype {dtype}", needed=" or ".join(DTYPES))
        cells = list(dict.fromkeys(replace(cell, dtype=dtype) for cell in cells))
    if threads is not None:
        torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    table = out / f"{name}-{device.type}.csv"
    rows: list[Row] = []
    for number, cell in enumerate(cells, start=1):
        typer.echo(f"{number}/{len(cells)}  {cell.label}", err=True)
        found = run_cell(cell, contenders(name, cell), device, repetitions)
        rows += found
        write_rows(rows, table)  # after every cell: an interruption loses one
        if not as_json:
            _show(found)
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
    typer.echo(f"table    {table}", err=True)
    typer.echo(f"picture  {_chart(name, rows, table.with_suffix('.png'))}", err=True)


def run_adapters(
    out: Path, repetitions: int, as_json: bool, threads: int | None = None, counts: str | None = None,
    hidden: int | None = None,
) -> None:  # fmt: skip
    """Tokens per second of batches under several adapters; write ``adapters-DEVICE.csv``.

    Args:
        out: the folder for the file.
        repetitions: of every number of adapters.
        as_json: print the rows as JSON instead of lines.
        threads: of the processor; None leaves what torch takes.
        counts: numbers of adapters, with commas between them.
        hidden: width of the model, a multiple of 32.

    Raises:
        BadParameter: ``counts`` or ``hidden`` cannot be used.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        wanted = mixed_batch.COUNTS if counts is None else tuple(int(word) for word in counts.split(","))
    except ValueError:
        wanted = ()
    if not wanted or any(not 0 < count <= mixed_batch.ROWS for count in wanted):
        needed = f"give numbers from 1 to {mixed_batch.ROWS}, with commas, as 1,4,16"
        raise typer.BadParameter(f"--adapters {counts}: {needed}")
    if hidden is not None and hidden % 32:
        raise typer.BadParameter(f"--hidden {hidden}: give a multiple of 32, the blocks' size")
    rows = mixed_batch.measure(hidden or 1024, counts=wanted, repetitions=repetitions)
    table = out / f"adapters-{rows[0].device}.csv"
    mixed_batch.write(rows, table)
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
    for row in rows if not as_json else ():
        length = f"{row.rows} rows of {row.tokens}"
        speed = f"{row.tokens_per_second:>12,.0f} tokens/s  {row.time_ratio:.2f} of the frozen model's time"
        typer.echo(f"{row.adapters:>3} adapters, {length:<14} {row.contender:<10} {speed}")
    typer.echo(f"table    {table}", err=True)


def run_prediction(card: str, name: str | None, as_json: bool) -> None:
    """Print what steps should cost on a card that need not be here; nothing is measured.

    Args:
        card: of ``harness.predict.GPUS``.
        name: one of ``harness.cells.SELECTIONS``, whose cells are predicted; None for published models.
        as_json: print the rows as JSON instead of a table.

    Raises:
        OrthotuneError: the card or the selection is not known, or nothing of it has a prediction.
    """
    rows = predict(card) if name is None else predict_cells(card, selection(name))
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    gpu = GPUS[card]
    title = f"PREDICTED for {gpu.name}, not measured ({gpu.source}: {gpu.bandwidth / 1e12:g} TB/s, " \
            f"{gpu.products / 1e12:g} TFLOP/s in bfloat16, {gpu.float32 / 1e12:g} in float32)"  # fmt: skip
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in ("model", "step", "contender"):
        table.add_column(name, no_wrap=True)
    for name in ("time / frozen", "ms", "GB", "TFLOP", "launches"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.model, row.mode, row.contender, f"{row.ratio:.3f}", f"{row.milliseconds:.2f}",
                      f"{row.gigabytes:.1f}", f"{row.teraflops:.2f}", str(row.launches))  # fmt: skip
    Console(width=160).print(table)


def _chart(name: str, rows: list[Row], path: Path) -> Path:
    from harness.plot import draw_bars, draw_growth

    (draw_growth if name == "growth" else draw_bars)(rows, path)
    return path


def _show(rows: list[Row]) -> None:
    first = rows[0]
    gpu = first.device == "cuda"
    target = target_of(first.cell, first.device)
    title = first.cell.label if target is None else f"{first.cell.label} (target {target:.2f})"
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("contender")
    for name in (f"time / {first.contender}", "10% - 90%", "saved MiB", *(("ms", "peak MiB") if gpu else ())):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        cells = [row.contender, f"{row.median:.3f}", f"{row.p10:.3f} - {row.p90:.3f}", _mib(row.saved_bytes)]
        cells += [f"{row.milliseconds or 0:.3f}", _mib(row.peak_bytes)] if gpu else []
        table.add_row(*cells)
    Console().print(table)


def _mib(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**20:.1f}"
