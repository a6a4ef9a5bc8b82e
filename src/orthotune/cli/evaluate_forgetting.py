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
    "drift": "drift of this part",
    "change": "change",
    "effective_rank": "effective rank",
}


def forgetting(*, run: Path, as_json: bool) -> None:
    """Measure and print what the parts of a run's adapter are worth.

    Args:
        run: run directory of a finished `orthotune train sft` with an adapter.
        as_json: print one JSON object.
    """
    from orthotune.experiments.forgetting import parts_of

    found = parts_of(run, say=lambda name: None if as_json else typer.echo(f"measured: {name}", err=True))
    if as_json:
        typer.echo(json.dumps([asdict(part) for part in found], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    full = found[0]
    title = f"all on: gain {full.gain:+.3f}, forgetting {full.forgetting:+.3f} nats/token"
    table = Table(*COLUMNS.values(), title=title)
    for part in found[1:]:
        table.add_row(
            part.name, f"{part.gain_lost:+.4f}", f"{part.forgetting_saved:+.4f}", f"{part.drift:.4f}",
            f"{part.change:.4f}", f"{part.effective_rank:.1f}",
        )  # fmt: skip
    Console().print(table)
