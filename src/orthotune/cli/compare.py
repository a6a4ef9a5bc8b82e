"""``orthotune compare``: one job by several methods at several learning rates; a verb for each comparison."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import typer

from orthotune.cli.recipe_words import recipe_and_settings
from orthotune.experiments.registry import COMPARISONS, Comparison

app = typer.Typer(no_args_is_help=True, help="Compare methods on one job.")


@app.callback()
def compare() -> None:
    """Compare methods on one job."""


def _verb(comparison: Comparison) -> Callable[..., None]:
    """The function of ``orthotune compare NAME``."""

    def run(
        arguments: list[str] = typer.Argument(
            None,
            metavar="[RECIPE.yaml] [KEY=VALUE]...",
            help="Recipe file, then methods, learning_rates, seeds and settings of all runs.",
        ),
        parallel: int = typer.Option(None, "--parallel", min=1, help="Runs at the same time. Default: 1."),
        output: Path = typer.Option(
            None,
            "--output",
            "--out",
            "-o",
            help=f"Output folder of runs and results. Default: runs/compare-{comparison.name}.",
        ),
    ) -> None:
        from orthotune.runs.quiet import quiet

        with quiet():  # on the import of pipelines, transformers warns about image processors that are not used here
            from orthotune.experiments import ladder

            task = comparison.task()
        recipe, settings = recipe_and_settings(arguments or [])
        options = {"parallel": parallel, "output": output}
        settings += [f"{key}={value}" for key, value in options.items() if value is not None]
        rungs = ladder.load_rungs(task, recipe, settings)
        _show(*ladder.run(task, rungs, say=typer.echo))
        folder = rungs[""].output if "" in rungs else next(iter(rungs.values())).output.parent
        for path in sorted(folder.glob("*.*")):
            if path.suffix in (".json", ".csv", ".png", ".html"):
                typer.echo(f"{path.name:<20} {path}")

    # In the help, brackets without a backslash would be styles.
    examples = (f"  orthotune compare {example}".replace("[", r"\[") for example in comparison.examples)
    run.__doc__ = "\n\n".join([comparison.summary, "Examples:", *examples])
    return run


def _show(title: str, head: list[str], lines: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*head, title=title)
    for line in lines:
        table.add_row(*line)
    Console().print(table)


for _comparison in COMPARISONS.values():
    app.command(_comparison.name)(_verb(_comparison))
