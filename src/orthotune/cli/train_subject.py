"""``orthotune train subject``: an image model learns one subject from a few pictures."""

from __future__ import annotations

from pathlib import Path

import typer


def subject(
    words: list[str] = typer.Argument(
        None, metavar="[RECIPE.yaml] [KEY=VALUE]...", help="A recipe file, then settings that go before its own."
    ),
    images: str = typer.Option(None, "--images", help="Folder with a few pictures of the subject."),
    prompt: str = typer.Option(None, "--prompt", help="What they show: a rare word and the class, 'a sks dog'."),
    method: str = typer.Option(None, "--method", help="oft, coft, lora or full."),
    preset: str = typer.Option(None, "--preset", help="Settings for a model family, see `orthotune presets`."),
    output: Path = typer.Option(None, "--output", "-o", help="Run directory. Default: runs/subject-METHOD."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what would be trained, and train nothing."),
) -> None:
    """Teach an image model a subject; without arguments a handwritten nine, on the image world.

    Examples:

      orthotune train subject

      orthotune train subject --method lora steps=200

      orthotune train subject preset=sdxl model=models/sdxl --images dog/ --prompt "a sks dog" class_prompt="a dog"
    """
    from orthotune.cli.train_images import train_images
    from orthotune.recipes import subject as recipe

    said = {"instance_images": images, "instance_prompt": prompt}
    train_images(
        recipe,
        recipe.SubjectSettings,
        words or [],
        said | {"method": method, "preset": preset, "output": output},
        dry_run,
    )
