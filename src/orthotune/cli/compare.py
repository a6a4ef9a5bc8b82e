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
    arguments: list[str] = typer.Argument(
        None,
        metavar="[RECIPE.yaml] [KEY=VALUE]...",
        help="Recipe file, then methods, learning_rates, seeds and settings of all runs.",
    ),
    parallel: int = typer.Option(None, "--parallel", min=1, help="Runs at the same time. Default: 1."),
    output: Path = typer.Option(
        None, "--output", "-o", help="Output folder of runs and results. Default: runs/compare-sft."
    ),
) -> None:
    r"""Finetune by OFT, COFT, LoRA of equal size and in full, at three learning rates each.

    Finished runs are kept: after an interruption, the same command continues.

    Examples:

      orthotune compare sft

      orthotune compare sft methods=\[oft,lora] seeds=\[0,1] steps=100 --parallel 2
    """
    from orthotune.cli.recipe_words import recipe_and_settings
    from orthotune.cli.report import report_on
    from orthotune.experiments import compare as job

    recipe, settings = recipe_and_settings(arguments or [])
    options = {"parallel": parallel, "output": output}
    settings += [f"{key}={value}" for key, value in options.items() if value is not None]
    checked = job.load_compare(recipe, settings)
    rows = job.run(checked, say=typer.echo)
    page = report_on(checked.output)
    show(rows)
    for name in ("comparison.json", "comparison.csv", "frontier.png"):
        typer.echo(f"{name:<16} {checked.output / name}")
    typer.echo(f"{'report':<16} {page}")


ARGUMENTS = typer.Argument(
    None,
    metavar="[RECIPE.yaml] [KEY=VALUE]...",
    help="Recipe file, then methods, learning_rates, seeds and settings of all runs.",
)
PARALLEL = typer.Option(None, "--parallel", min=1, help="Runs at the same time. Default: 1.")


@app.command()
def subject(
    arguments: list[str] = ARGUMENTS,
    parallel: int = PARALLEL,
    output: Path = typer.Option(
        None, "--output", "-o", help="Output folder of runs and results. Default: runs/compare-subject."
    ),
) -> None:
    r"""Teach the built-in image model a subject by OFT, COFT, OFT with magnitudes, LoRA of equal size and in full.

    Each method runs at five learning rates; the best rate on the validation split runs again with three seeds, and
    these runs are scored on the test split.
    Finished runs are kept: after an interruption, the same command continues.

    Examples:

      orthotune compare subject

      orthotune compare subject methods=\[oft,lora] seeds=\[0,1] steps=100 --parallel 2
    """
    _compare_images("subject", arguments, parallel, output)


@app.command()
def control(
    arguments: list[str] = ARGUMENTS,
    parallel: int = PARALLEL,
    output: Path = typer.Option(
        None, "--output", "-o", help="Output folder of runs and results. Default: runs/compare-control."
    ),
) -> None:
    r"""Teach the built-in image model to follow control images by each method, as `compare subject` does.

    Examples:

      orthotune compare control

      orthotune compare control signal=canny steps=800 learning_rates='{oft: \[0.001, 0.002]}'
    """
    _compare_images("control", arguments, parallel, output)


def _compare_images(task: str, arguments: list[str], parallel: int | None, output: Path | None) -> None:
    from orthotune.cli.recipe_words import recipe_and_settings
    from orthotune.runs.quiet import quiet

    with quiet():  # on the import of pipelines, transformers warns about image processors that are not used here
        from orthotune.experiments import compare_images as job
        from orthotune.experiments.compare_images_settings import load_compare

    recipe, settings = recipe_and_settings(arguments or [])
    options = {"parallel": parallel, "output": output}
    settings += [f"{key}={value}" for key, value in options.items() if value is not None]
    checked = load_compare(task, recipe, settings)
    rows = job.run(checked, say=typer.echo)
    show_summary(rows, job.summary(rows), task)
    for path in sorted(checked.output.glob("*.*")):
        if path.suffix in (".json", ".csv", ".png", ".html"):
            typer.echo(f"{path.name:<20} {path}")


def show_summary(rows: list[dict[str, Any]], summary: dict[str, dict[str, tuple[float, float]]], task: str) -> None:
    """Print one line per method: its scores on the test split at the chosen learning rate, as means over the seeds."""
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

    table = Table(*COLUMNS.values(), title="gain on the target domain, forgetting on the source domain, in nats/token")
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
