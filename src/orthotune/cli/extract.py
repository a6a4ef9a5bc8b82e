"""``orthotune extract``: the adapter of rotations that comes nearest to a finetuned model."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer


def extract(
    base: str = typer.Argument(help="The model before: a folder, or a name on the hub."),
    finetuned: str = typer.Argument(help="The same model after its finetuning."),
    out: Path = typer.Option(..., "--out", "--output", "-o", help="Folder of the new adapter."),
    block_size: int = typer.Option(32, "--block-size", help="Size of the rotated blocks."),
    rank: Annotated[
        int | None, typer.Option("--rank", help="Rotate so many leading singular directions instead of blocks.")
    ] = None,
    side: str = typer.Option("in", "--side", help="Rotate inputs (in) or outputs (out)."),
    magnitude: bool = typer.Option(True, "--magnitude/--no-magnitude", help="Fit a scale for each output, too."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace what is there."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Write the adapter whose rotations come nearest to a finetuned model, and say how near.

    The residual of a layer is what is left of its change: 0 if a rotation explains all of it, 1 if nothing.

    Examples:

      orthotune extract models/base models/finetuned --out adapter

      orthotune extract models/base models/finetuned --out adapter --rank 64 --no-magnitude
    """
    from orthotune.errors import ConfigError
    from orthotune.operations.extract import extract as run

    if side not in ("in", "out"):
        raise ConfigError(f"--side {side}", needed="in or out")
    done = run(
        base, finetuned, out, block_size=block_size, rank=rank, side="in" if side == "in" else "out",
        magnitude=magnitude, overwrite=overwrite,
    )  # fmt: skip
    if as_json:
        typer.echo(json.dumps(asdict(done) | {"out": str(done.out), "residual": done.residual}, indent=2))
        return
    for row in done.layers:
        note = f", {row.still} blocks left alone" if row.still else ""
        typer.echo(f"{row.layer}: residual {row.residual:.3f} of a change of {row.change:.3g}{note}")
    typer.echo(f"residual {done.residual:.3f} over {len(done.layers)} layers")
    if done.left:
        typer.echo(f"not in the adapter: {len(done.left)} changed parameters, such as {done.left[0]}")
    typer.echo(f"wrote {done.out}")
