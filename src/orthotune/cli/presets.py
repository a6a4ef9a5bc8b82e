"""``orthotune presets``: settings known for a model family."""

from __future__ import annotations

import typer


def presets(name: str = typer.Argument(None, help="Preset to print; without a name, all presets are listed.")) -> None:
    """List the presets (those of image recipes as RECIPE/NAME), or print one as the beginning of a new recipe file.

    Examples:

      orthotune presets

      orthotune presets llama > mine.yaml

      orthotune presets subject/sdxl
    """
    from orthotune.recipes import preset

    if name is not None:
        typer.echo(preset.read(name).text, nl=False)
        return
    for recipe in preset.recipes():
        for known in preset.names(recipe):
            shown = known if recipe == preset.SFT else f"{recipe}/{known}"
            typer.echo(f"{shown:<25} {preset.read(known, recipe).reason}")
