"""``orthotune train``: one finetuning run; a verb for each recipe of the registry, and the fit of magnitudes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import Parameter
from pathlib import Path
from typing import Any

import typer

from orthotune.cli.recipe_words import recipe_and_settings
from orthotune.cli.verbs import with_epilogue, with_parameters
from orthotune.recipes.registry import RECIPES, Option, Recipe

WORDS = "[RECIPE.yaml] [KEY=VALUE]..."
#: settings of every recipe with an option of their own; the run directory is the third
EVERYWHERE = (
    Option("method", "--method", "oft, coft, lora or full."),
    Option("preset", "--preset", "Settings for a model family, see `orthotune presets`."),
)

app = typer.Typer(no_args_is_help=True, help="Finetune a model.")


@app.callback()
def train() -> None:
    """Finetune a model."""


def _verb(recipe: Recipe) -> Callable[..., None]:
    """The function whose signature typer makes the options of ``orthotune train NAME`` from."""

    def run(
        words: list[str], output: Path | None, dry_run: bool = False, show_data: bool = False, keys: bool = False,
        **options: Any,
    ) -> None:  # fmt: skip
        if keys:
            from orthotune.recipes.setting_help import listing

            typer.echo(listing(recipe, [word.partition("=")[0] for word in words or []]))
            return
        from orthotune.recipes.load import load_settings

        file, settings = recipe_and_settings(words or [])
        settings += [f"{key}={value}" for key, value in {**options, "output": output}.items() if value is not None]
        from orthotune.runs.quiet import quiet

        with quiet():  # on import, transformers remarks on image processors that nothing here uses
            job, kind = recipe.job(), recipe.settings_class()
        checked: Any = load_settings(kind, file, settings)
        if dry_run:
            for line in job.plan(checked):
                typer.echo(line)
            return
        if show_data:
            from orthotune.cli.terminal import marks, printable

            with quiet():  # tokenizers remark on rows that are longer than the model's
                lines = job.show_data(checked, marks())
            for line in lines:
                typer.echo(printable(line))
            return
        _finished(recipe, checked, lambda: job.run(checked, say=typer.echo))

    words = typer.Argument(None, metavar=WORDS, help="Recipe file, then KEY=VALUE settings that override the file.")
    output = typer.Option(None, "--output", "--out", "-o", help=f"Run directory. Default: runs/{recipe.name}-METHOD.")
    keys = typer.Option(False, "--keys", help="List every setting: type, default, meaning, presets that set it.")
    parameters = [
        Parameter("words", Parameter.KEYWORD_ONLY, default=words, annotation=list[str]),
        *(
            Parameter(
                one.key, Parameter.KEYWORD_ONLY, default=typer.Option(None, one.flag, help=one.help), annotation=str
            )
            for one in (*recipe.options, *EVERYWHERE)
        ),
        Parameter("output", Parameter.KEYWORD_ONLY, default=output, annotation=Path),
        Parameter("keys", Parameter.KEYWORD_ONLY, default=keys, annotation=bool),
    ]
    if recipe.plans:
        dry = typer.Option(False, "--dry-run", help="Print the plan of the run, and train nothing.")
        parameters.append(Parameter("dry_run", Parameter.KEYWORD_ONLY, default=dry, annotation=bool))
    if recipe.shows_data:
        shown = typer.Option(False, "--show-data", help="Print three examples as tokens, and train nothing.")
        parameters.append(Parameter("show_data", Parameter.KEYWORD_ONLY, default=shown, annotation=bool))
    examples = (f"  orthotune train {example}" for example in recipe.examples)
    return with_parameters(run, parameters, [recipe.summary, "Examples:", *examples])


def _overview(recipe: Recipe) -> str:
    from orthotune.recipes.setting_help import overview

    return overview(recipe)


for _recipe in RECIPES.values():
    app.command(_recipe.name, cls=with_epilogue(partial(_overview, _recipe)))(_verb(_recipe))


@app.command()
def magnitude(
    adapter: Path = typer.Argument(metavar="RUN", help="Output of a run by OFT or COFT, or a folder with an adapter."),
    words: list[str] = typer.Argument(None, metavar=WORDS, help="Settings that differ from those of that run."),
    output: Path = typer.Option(None, "--output", "--out", "-o", help="Run directory. Default: beside RUN."),
) -> None:
    """Fit a scale for each neuron of a finished run, of a language or an image model; its rotations stay frozen.

    The data and the loss are those of RUN. For an adapter that lies in no run directory, give recipe=NAME (sft,
    classify, subject, control, t2i and the other recipes) and that recipe's settings.

    Examples:

      orthotune train magnitude runs/sft-oft

      orthotune train magnitude runs/subject-oft steps=100 learning_rate=0.003

      orthotune train magnitude adapters/style recipe=t2i data=photos model=models/sd15
    """
    from orthotune.recipes import magnitude as job

    file, settings = recipe_and_settings(words or [])
    settings += [f"{key}={value}" for key, value in {"adapter": adapter, "output": output}.items() if value is not None]
    checked: Any = job.load_magnitude(file, settings)
    _finished(RECIPES[checked.recipe], checked, lambda: job.run(checked, say=typer.echo))


def _finished(recipe: Recipe, settings: Any, run: Callable[[], Any]) -> None:
    """Run, write the report and print what came of the run; only the main process of several prints."""
    from orthotune.cli.report import report_on
    from orthotune.runs.optional_images import not_written
    from orthotune.runs.processes import is_main, leave

    try:
        record = run()
    except KeyboardInterrupt:
        if is_main():
            _stopped(recipe, settings.output)
        raise
    leave()
    if not is_main():
        return
    missing = not_written(lambda: report_on(settings.output), "report.html")
    if recipe.text and not (record.scores_after and record.new_before is None and record.old_before is None):
        show(record)
    if record.scores_after:
        show_scores(record, "scores" if recipe.text else "validation split")
    for kind, name in record.artifacts.items():
        typer.echo(f"{kind:<10} {settings.output / name}")
    typer.echo(missing or f"{'report':<10} {settings.output / 'report.html'}")
    show_next(record, settings.output)


def _stopped(recipe: Recipe, output: Path) -> None:
    """Say how a run that was stopped goes on, and write its report if it left a record."""
    from orthotune.cli.report import report_on
    from orthotune.files.run_adapter import STOPPED
    from orthotune.runs.optional_images import not_written

    if (output / STOPPED).is_file():
        missing = not_written(lambda: report_on(output), "report.html")
        typer.echo(f"{'adapter':<10} {output / 'adapter'}, of the last checkpoint")
        typer.echo(missing or f"{'report':<10} {output / 'report.html'}")
    if recipe.text:
        typer.echo(f"Go on with the same command and resume=auto output={output}", err=True)


def show_next(record: Any, folder: Path) -> None:
    """Print the commands that a person would type next."""
    from orthotune.report.next_steps import next_steps

    kept = ("recipe", "method", "artifacts", "rewound", "settings")
    steps = next_steps({key: getattr(record, key, None) for key in kept}, folder)
    if steps:
        typer.echo("\nWhat next:")
    longest = max((len(command) for command, _ in steps), default=0)
    for command, purpose in steps:
        typer.echo(f"  {command:<{longest}}  {purpose}")


def show(record: Any) -> None:
    """Print what was learned and what was forgotten."""
    from rich.console import Console
    from rich.table import Table

    table = Table("nats/token, held out", "before", "after", "change", title=None)
    for name, before, after in (
        ("target domain (learned)", record.new_before, record.new_after),
        ("source domain (forgotten)", record.old_before, record.old_after),
    ):
        known = before is not None and after is not None
        cells = [f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}"] if known else ["-", "-", "not measured"]
        table.add_row(name, *cells)
    Console().print(table)


def show_scores(record: Any, heading: str = "validation split") -> None:
    """Print the scores before and after.

    Args:
        record: of the run.
        heading: of the column with the names of the scores.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(heading, "before", "after", "change")
    for name, after in record.scores_after.items():
        before = record.scores_before[name]
        table.add_row(name, f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}")
    Console().print(table)
