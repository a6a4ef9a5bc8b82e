"""``orthotune bench``: adapted models beside the frozen one, in time and in bytes."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from orthotune.bench.results import Row

BLOCKS = (8, 16, 32, 64, 128, 256)
SELECTIONS = "targets, growth, blocks, grid, others, unet, gpu or smoke"


def bench(
    selection: str = typer.Argument("targets", help=f"{SELECTIONS}; or adapters: tokens per second of mixed batches."),
    threads: int = typer.Option(None, min=1, help="Of the processor. Default: what torch takes."),
    repetitions: int = typer.Option(40, min=1, help="Of every cell; two minutes of a cell end it earlier, at 5."),
    out: Path = typer.Option(Path("runs/bench"), "--out", "-o", help="Folder for SELECTION-DEVICE.csv and .png."),
    as_json: bool = typer.Option(False, "--json", help="Print the rows as JSON instead of tables."),
    adapters: str = typer.Option(None, "--adapters", help="For adapters: how many in a batch. Default: 1,4,16,64."),
    hidden: int = typer.Option(None, "--hidden", min=32, help="For adapters: width of the model. Default: 1024."),
    explain: bool = typer.Option(
        False, "--explain", help="Print kernels, the path of each layer, what is cached, and why; measure nothing."
    ),
) -> None:
    """Time training, evaluation and decoding against the frozen model, PEFT's LoRA and PEFT's OFT, in one process.

    Figures are ratios to the frozen model's own step of the same repetition. Runs on the GPU if there is one.

    Examples:

      orthotune bench targets --threads 2

      orthotune bench --explain
    """
    if explain:
        _explain(as_json)
        return
    import torch

    if selection == "adapters":
        if threads is not None:
            torch.set_num_threads(threads)
        _adapters(out, repetitions, as_json, adapters, hidden)
        return
    if adapters is not None or hidden is not None:
        raise typer.BadParameter("--adapters and --hidden are for `orthotune bench adapters`")
    from orthotune.bench.cells import selection as cells_of
    from orthotune.bench.contenders import contenders
    from orthotune.bench.results import write_rows
    from orthotune.bench.run import run_cell

    cells = cells_of(selection)
    if threads is not None:
        torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    table = out / f"{selection}-{device.type}.csv"
    rows: list[Row] = []
    for number, cell in enumerate(cells, start=1):
        typer.echo(f"{number}/{len(cells)}  {cell.label}", err=True)
        found = run_cell(cell, contenders(selection, cell), device, repetitions)
        rows += found
        write_rows(rows, table)  # after every cell: an interruption loses one
        if not as_json:
            _show(found)
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
    typer.echo(f"table    {table}", err=True)
    typer.echo(f"picture  {_picture(selection, rows, table.with_suffix('.png'))}", err=True)


def _adapters(out: Path, repetitions: int, as_json: bool, counts: str | None, hidden: int | None) -> None:
    from orthotune.bench.mixed_batch import COUNTS, ROWS, measure, write

    try:
        wanted = COUNTS if counts is None else tuple(int(word) for word in counts.split(","))
    except ValueError:
        wanted = ()
    if not wanted or any(not 0 < count <= ROWS for count in wanted):
        raise typer.BadParameter(f"--adapters {counts}: give numbers from 1 to {ROWS}, with commas, as 1,4,16")
    if hidden is not None and hidden % 32:
        raise typer.BadParameter(f"--hidden {hidden}: give a multiple of 32, the blocks' size")
    rows = measure(hidden or 1024, counts=wanted, repetitions=repetitions)
    table = out / f"adapters-{rows[0].device}.csv"
    write(rows, table)
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
    for row in rows if not as_json else ():
        length = f"{row.rows} rows of {row.tokens}"
        speed = f"{row.tokens_per_second:>12,.0f} tokens/s  {row.time_ratio:.2f} of the frozen model's time"
        typer.echo(f"{row.adapters:>3} adapters, {length:<14} {row.contender:<10} {speed}")
    typer.echo(f"table    {table}", err=True)


def _picture(selection: str, rows: list[Row], path: Path) -> Path:
    from orthotune.bench.plot import draw_bars, draw_growth

    (draw_growth if selection == "growth" else draw_bars)(rows, path)
    return path


def _show(rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    from orthotune.bench.cells import target_of

    first = rows[0]
    gpu = first.device == "cuda"
    target = target_of(first.cell, first.device)
    title = first.cell.label if target is None else f"{first.cell.label} (target {target:.2f})"
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("contender")
    for name in ("time / frozen", "10% - 90%", "saved MiB", *(("ms", "peak MiB") if gpu else ())):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        cells = [row.contender, f"{row.median:.3f}", f"{row.p10:.3f} - {row.p90:.3f}", _mib(row.saved_bytes)]
        cells += [f"{row.milliseconds or 0:.3f}", _mib(row.peak_bytes)] if gpu else []
        table.add_row(*cells)
    Console().print(table)


def _mib(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**20:.1f}"


def _explain(as_json: bool) -> None:
    rows = paths()
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        sizes = ", ".join(map(str, row["block_sizes"]))
        typer.echo(
            f"{row['operation']:<16} {row['device']:<5} {row['dtype']:<9} b={sizes:<27} {row['path']:<7} {row['why']}"
        )
    for name, lines in layers().items():
        typer.echo(f"\n{name}\n  " + lines.replace("\n", "\n  "))


def layers() -> dict[str, str]:
    """What each adapted layer of a small Llama block does in decoding, after one token: plan, cache, shared input."""
    import torch

    from orthotune.bench.cells import Cell
    from orthotune.bench.contenders import LLAMA, stirred
    from orthotune.bench.subject import subject
    from orthotune.layers.base import OFTLayer
    from orthotune.layers.plan import explain

    cell = Cell(128, 1, 1, mode="decode")
    frozen = subject(cell, torch.device("cpu"))
    (ours,) = (one for one in LLAMA if one.name == "orthotune")
    model = stirred(ours, frozen, cell)
    with torch.no_grad():
        frozen.call(model, frozen.x)
    return {
        name.removeprefix("base_model.model."): explain(module)
        for name, module in model.named_modules()
        if isinstance(module, OFTLayer)
    }


def paths() -> list[dict[str, Any]]:
    """The path of every (operation, device, dtype), block sizes that take the same one together.

    Example:
        >>> paths()[0]["path"]
        'torch'
    """
    import torch

    from orthotune.kernels.choose import Operation, choose

    operations: tuple[Operation, ...] = ("from_parameters", "rotate")
    rows: list[dict[str, Any]] = []
    for operation in operations:
        for device in ("cpu", "cuda"):
            for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
                if operation == "from_parameters" and dtype in (torch.bfloat16, torch.float16):
                    continue  # rotations are computed in float32 or better
                for size in BLOCKS:
                    chosen = choose(operation, device, dtype, size)
                    why = chosen.why.replace(f", blocks of {size}", "")
                    key = {"operation": operation, "device": device, "dtype": str(dtype).removeprefix("torch."),
                           "path": chosen.path, "why": why}  # fmt: skip
                    last = rows[-1] if rows else {}
                    if all(last.get(name) == value for name, value in key.items()):
                        last["block_sizes"].append(size)
                    else:
                        rows.append({**key, "block_sizes": [size]})
    return rows
