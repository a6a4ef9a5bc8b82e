"""``orthotune train control``: a picture's edges, map, sketch, depth, pose or landmarks decide the shape."""

from __future__ import annotations

from pathlib import Path

import typer


def control(
    words: list[str] = typer.Argument(
        None, metavar="[RECIPE.yaml] [KEY=VALUE]...", help="A recipe file, then settings that go before its own."
    ),
    signal: str = typer.Option(None, "--signal", help="canny, segm, sketch, depth, densepose or landmark."),
    method: str = typer.Option(None, "--method", help="oft, coft, lora or full."),
    preset: str = typer.Option(None, "--preset", help="Settings for a model family, see `orthotune presets`."),
    output: Path = typer.Option(None, "--output", "-o", help="Run directory. Default: runs/control-METHOD."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what would be trained, and train nothing."),
) -> None:
    """Teach an image model to follow control pictures; without arguments masks, on the image world.

    Examples:

      orthotune train control

      orthotune train control --signal sketch --method lora steps=800

      orthotune train control preset=stable-diffusion model=models/sd15 data=photos conditions=depths signal=depth
    """
    from orthotune.cli.train_images import train_images
    from orthotune.runs.quiet import quiet

    with quiet():  # importing pipelines, transformers remarks on image processors that nothing here uses
        from orthotune.recipes import control as recipe

    options = {"signal": signal, "method": method, "preset": preset, "output": output}
    train_images(recipe, recipe.ControlSettings, words or [], options, dry_run)
