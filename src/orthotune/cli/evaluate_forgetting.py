"""``orthotune evaluate forgetting``: which layers of a finished run learned, and which forgot."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import typer

COLUMNS = {
    "name": "without",
    "gain_lost": "gain lost",
    "forgetting_saved": "forgetting saved",
    "drift": "drift of it alone",
    "change": "change",
    "effective_rank": "effective rank",
}


def forgetting(
    run: Path = typer.Argument(help="Output of a finished `orthotune train sft` with an adapter."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Switch parts of a run's adapter off, one after the other: what they learned, what they made the model forget.

    Examples:

      orthotune evaluate forgetting runs/sft-oft
    """
    from orthotune.experiments.forgetting import parts_of

    found = parts_of(run, say=lambda name: None if as_json else typer.echo(f"measured: {name}", err=True))
    if as_json:
        typer.echo(json.dumps([asdict(part) for part in found], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    whole = found[0]
    title = f"all on: gain {whole.gain:+.3f}, forgetting {whole.forgetting:+.3f} nats/token"
    table = Table(*COLUMNS.values(), title=title)
    for part in found[1:]:
        table.add_row(
            part.name, f"{part.gain_lost:+.4f}", f"{part.forgetting_saved:+.4f}", f"{part.drift:.4f}",
            f"{part.change:.4f}", f"{part.effective_rank:.1f}",
        )  # fmt: skip
    Console().print(table)
