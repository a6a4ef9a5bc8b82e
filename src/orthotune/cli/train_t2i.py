"""``orthotune train t2i``: an image model learns from captioned pictures."""

from __future__ import annotations

from pathlib import Path

import typer


def t2i(
    words: list[str] = typer.Argument(
        None, metavar="[RECIPE.yaml] [KEY=VALUE]...", help="A recipe file, then settings that go before its own."
    ),
    data: str = typer.Option(None, "--data", help="Folder, table (.jsonl, .parquet) or hub data set with captions."),
    method: str = typer.Option(None, "--method", help="oft, coft, lora or full."),
    preset: str = typer.Option(None, "--preset", help="Settings for a model family, see `orthotune presets`."),
    output: Path = typer.Option(None, "--output", "-o", help="Run directory. Default: runs/t2i-METHOD."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what would be trained, and train nothing."),
) -> None:
    """Finetune an image model on captioned pictures; without arguments a new word, on the image world.

    Examples:

      orthotune train t2i

      orthotune train t2i --data birds/ model=models/sd15 --preset stable-diffusion

      orthotune train t2i --data birds/metadata.jsonl buckets=true caption="a bird" --dry-run
    """
    from orthotune.cli.train_images import train_images
    from orthotune.recipes import text_to_image as recipe

    options = {"data": data, "method": method, "preset": preset, "output": output}
    train_images(recipe, recipe.TextToImageSettings, words or [], options, dry_run)
