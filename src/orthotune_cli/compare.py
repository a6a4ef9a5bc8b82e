"""``orthotune compare``: the same job by several methods at several learning rates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

app = typer.Typer(no_args_is_help=True, help="Compare methods on one job.")

COLUMNS = {
    "method": "method",
    "learning_rate": "lr",
    "seed": "seed",
    "trainable_parameters": "trainable",
    "gain": "gain",
    "forgetting": "forgetting",
    "orthogonality_error": "‖RRᵀ-I‖",
    "energy_change": "energy change",
    "train_seconds": "seconds",
}


@app.callback()
def compare() -> None:
    """Compare methods on one job."""


@app.command()
def sft(
    words: list[str] = typer.Argument(
        None, metavar="[RECIPE.yaml] [KEY=VALUE]...", help="methods, learning_rates, seeds, and settings of every run."
    ),
    parallel: int = typer.Option(None, "--parallel", min=1, help="Runs at the same time. Default: 1."),
    output: Path = typer.Option(None, "--output", "-o", help="Where runs and results go. Default: runs/compare-sft."),
) -> None:
    r"""Finetune by OFT, COFT, LoRA of equal size and in full, at three learning rates each.

    Runs that are finished are kept: the same command goes on after an interruption.

    Examples:

      orthotune compare sft

      orthotune compare sft methods=\[oft,lora] seeds=\[0,1] steps=100 --parallel 2
    """
    from orthotune.recipes import compare as job
    from orthotune_cli.report import report_on
    from orthotune_cli.train import recipe_and_settings

    recipe, settings = recipe_and_settings(words or [])
    options = {"parallel": parallel, "output": output}
    settings += [f"{key}={value}" for key, value in options.items() if value is not None]
    checked = job.load_compare(recipe, settings)
    rows = job.run(checked, say=typer.echo)
    page = report_on(checked.output)
    show(rows)
    for name in ("comparison.json", "comparison.csv", "frontier.png"):
        typer.echo(f"{name:<16} {checked.output / name}")
    typer.echo(f"{'report':<16} {page}")


def show(rows: list[dict[str, Any]]) -> None:
    """Print one line per run, in the order of the grid; gain and forgetting are nats per token."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*COLUMNS.values(), title="gain on the new domain, forgetting on the old one, in nats/token")
    for row in rows:
        table.add_row(*(_cell(key, row[key]) for key in COLUMNS))
    Console().print(table)


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key in ("gain", "forgetting"):
        return f"{value:+.3f}"
    if key in ("orthogonality_error", "energy_change"):
        return f"{value:.1e}"
    if key == "trainable_parameters":
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else str(value)
