"""``orthotune train magnitude``: the scale of each neuron, beside a rotation that is trained already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer


def magnitude(
    adapter: Path = typer.Argument(metavar="RUN", help="Output of a run by OFT or COFT, or a folder with an adapter."),
    words: list[str] = typer.Argument(
        None, metavar="[RECIPE.yaml] [KEY=VALUE]...", help="Settings that differ from those of that run."
    ),
    output: Path = typer.Option(None, "--output", "-o", help="Run directory. Default: beside RUN."),
) -> None:
    """Fit a scale for each neuron of a finished run, of a language or an image model; its rotations stand still.

    The data and the loss are those of RUN. For an adapter that lies in no run's folder, say recipe=NAME (sft, subject,
    control, t2i) and that recipe's settings.

    Examples:

      orthotune train magnitude runs/sft-oft

      orthotune train magnitude runs/subject-oft steps=100 learning_rate=0.003

      orthotune train magnitude adapters/style recipe=t2i data=photos model=models/sd15
    """
    from orthotune.cli.report import report_on
    from orthotune.cli.train import recipe_and_settings, show
    from orthotune.recipes import magnitude as job

    recipe, settings = recipe_and_settings(words or [])
    settings += [f"{key}={value}" for key, value in {"adapter": adapter, "output": output}.items() if value is not None]
    checked: Any = job.load_magnitude(recipe, settings)
    record = job.run(checked, say=typer.echo)
    page = report_on(checked.output)
    if record.scores_after:
        show_scores(record)
    else:
        show(record)
    for kind, name in record.artifacts.items():
        typer.echo(f"{kind:<10} {checked.output / name}")
    typer.echo(f"{'report':<10} {page}")


def show_scores(record: Any) -> None:
    """Print the scores before and after."""
    from rich.console import Console
    from rich.table import Table

    table = Table("validation split", "before", "after", "change")
    for name, after in record.scores_after.items():
        before = record.scores_before[name]
        table.add_row(name, f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}")
    Console().print(table)
