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
    from orthotune.cli.recipe_words import recipe_and_settings
    from orthotune.cli.report import report_on
    from orthotune.experiments import compare as job

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


WORDS = typer.Argument(
    None, metavar="[RECIPE.yaml] [KEY=VALUE]...", help="methods, learning_rates, seeds, and settings of every run."
)
PARALLEL = typer.Option(None, "--parallel", min=1, help="Runs at the same time. Default: 1.")


@app.command()
def subject(
    words: list[str] = WORDS,
    parallel: int = PARALLEL,
    output: Path = typer.Option(None, "--output", "-o", help="Where it all goes. Default: runs/compare-subject."),
) -> None:
    r"""Teach the image world's subject by OFT, COFT, OFT with magnitudes, LoRA of equal size and in full.

    Five learning rates each; the best on the validation split runs with three seeds, which the test split scores.
    Runs that are finished are kept: the same command goes on after an interruption.

    Examples:

      orthotune compare subject

      orthotune compare subject methods=\[oft,lora] seeds=\[0,1] steps=100 --parallel 2
    """
    _compare_images("subject", words, parallel, output)


@app.command()
def control(
    words: list[str] = WORDS,
    parallel: int = PARALLEL,
    output: Path = typer.Option(None, "--output", "-o", help="Where it all goes. Default: runs/compare-control."),
) -> None:
    r"""Teach the image world to follow control pictures by each method, as `compare subject` does.

    Examples:

      orthotune compare control

      orthotune compare control signal=canny steps=800 learning_rates='{oft: \[0.001, 0.002]}'
    """
    _compare_images("control", words, parallel, output)


def _compare_images(task: str, words: list[str], parallel: int | None, output: Path | None) -> None:
    from orthotune.cli.recipe_words import recipe_and_settings
    from orthotune.runs.quiet import quiet

    with quiet():  # importing pipelines, transformers remarks on image processors that nothing here uses
        from orthotune.experiments import compare_images as job
        from orthotune.experiments.compare_images_settings import load_compare

    recipe, settings = recipe_and_settings(words or [])
    options = {"parallel": parallel, "output": output}
    settings += [f"{key}={value}" for key, value in options.items() if value is not None]
    checked = load_compare(task, recipe, settings)
    rows = job.run(checked, say=typer.echo)
    show_summary(rows, job.summary(rows), task)
    for path in sorted(checked.output.glob("*.*")):
        if path.suffix in (".json", ".csv", ".png", ".html"):
            typer.echo(f"{path.name:<20} {path}")


def show_summary(rows: list[dict[str, Any]], summary: dict[str, dict[str, tuple[float, float]]], task: str) -> None:
    """Print one line per method: the test scores of its chosen rate, means over the seeds."""
    from rich.console import Console
    from rich.table import Table

    from orthotune.experiments.image_tasks import TASKS

    names = TASKS[task].told
    table = Table("method", "lr", "trained", *names, title="test split, means over the seeds")
    for method, found in summary.items():
        chosen = next(row for row in rows if row["method"] == method and row["chosen"])
        rate = f"{chosen['learning_rate']:g}" if "learning_rate" in chosen else "-"
        cells = [f"{found[f'test_{name}'][0]:.3f}" if f"test_{name}" in found else "-" for name in names]
        table.add_row(method, rate, f"{chosen['trainable_parameters']:,}", *cells)
    Console().print(table)


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
