"""``orthotune presets``: settings known for a model family."""

from __future__ import annotations

import typer


def presets(name: str = typer.Argument(None, help="Print this one; without a name, list all.")) -> None:
    """List the presets, or print one to start a recipe of your own from.

    Examples:

      orthotune presets

      orthotune presets llama > mine.yaml
    """
    from orthotune.recipes import preset

    if name is not None:
        typer.echo(preset.read(name).text, nl=False)
        return
    for known in preset.names():
        typer.echo(f"{known:<12} {preset.read(known).reason}")
