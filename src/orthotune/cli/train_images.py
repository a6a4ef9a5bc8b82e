"""What the verbs that train image models share: settings read, a run or its plan, what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import typer


def train_images(
    recipe: Any, kind: type[Any], words: Sequence[str], options: Mapping[str, object], dry_run: bool
) -> None:
    """Run ``recipe``, or print its plan, with settings of ``kind`` from a file, ``KEY=VALUE`` words and options."""
    from orthotune.cli.train import recipe_and_settings
    from orthotune.recipes import load

    file, said = recipe_and_settings(list(words))
    said += [f"{key}={value}" for key, value in options.items() if value is not None]
    settings = load.load_settings(kind, file, said)
    if dry_run:
        for line in recipe.plan(settings):
            typer.echo(line)
        return
    from orthotune.cli.report import report_on
    from orthotune.cli.train_magnitude import show_scores

    record = recipe.run(settings, say=typer.echo)
    page = report_on(settings.output)
    if record.scores_after:
        show_scores(record)
    for name, file_name in record.artifacts.items():
        typer.echo(f"{name:<10} {settings.output / file_name}")
    typer.echo(f"{'report':<10} {page}")
