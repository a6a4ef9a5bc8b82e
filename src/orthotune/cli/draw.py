"""``orthotune draw``: images and clips that a run, an adapter or a pipeline generates, at several strengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import typer

from orthotune.cli import model_options as given

Number = TypeVar("Number", int, float)


def draw(
    source: str = typer.Argument(
        metavar="RUN|ADAPTER|PIPELINE",
        help="Directory of a run on an image model, an adapter, or a pipeline: path, hub name or image-world.",
    ),
    prompts: list[str] = typer.Argument(None, metavar="[PROMPT]...", help="Texts that describe an image, each alone."),
    file: Path = typer.Option(
        None, "--prompts", "-f", help="File of prompts: one in each line, or in `prompt` of each line of a .jsonl."
    ),
    strengths: list[str] = typer.Option(
        ["1"], "--strength", "-t", help="Of the adapter: 0 is the base, 1 the adapter as trained. Several: 0,0.5,1."
    ),
    seeds: list[str] = typer.Option(["0"], "--seed", "-s", help="Of the noise. Several: 0,1,2."),
    both: bool = typer.Option(False, "--both", help="Generate without the adapter, too."),
    out: Path = typer.Option(
        None, "--out", "--output", "-o", help="New folder of the images and their grid. Default: images, images-2, ..."
    ),
    steps: int = typer.Option(None, "--steps", min=1, help="Of the sampler. Default: of the run's samples, or 20."),
    guidance: float = typer.Option(None, "--guidance", help="Default: that of the run, or of the family."),
    size: str = typer.Option(None, "--size", help="Side in pixels, or WIDTHxHEIGHT. Default: the model's own."),
    frames: int = typer.Option(
        None, "--frames", min=1, help="Of a clip, of a model of films. Default: of the run, or 1."
    ),
    base: str = given.BASE,
    dtype: str = given.DTYPE,
    batch: int = typer.Option(4, "--batch", min=1, help="Images generated together."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace what is at --out."),
) -> None:
    """Generate images with an adapter: at several strengths, from several seeds, beside the base.

    Every image is a PNG file that records prompt, seed, strength, base and adapter; grid.png shows all of them. Of a
    clip, the PNG file is its first frame, and an animation lies beside it.

    Examples:

      orthotune draw runs/subject-oft "a sks digit on grass" --strength 0.7

      orthotune draw runs/subject-oft "a red sks digit" "a blue sks digit" -t 0.5,1 -s 0,1,2 --both

      orthotune draw style.safetensors "a lighthouse" --base models/sdxl --out lighthouse
    """
    from orthotune.cli.generate import read_prompts
    from orthotune.image.draw import draw as operation
    from orthotune.image.draw import write_images
    from orthotune.image.opened_pipeline import open_pipeline
    from orthotune.runs.progress import StepBar
    from orthotune.runs.quiet import quiet

    asked = [*(prompts or []), *(read_prompts(file) if file else [])]
    width, height = _size(size)
    levels, numbers = _numbers(strengths, float, "--strength"), _numbers(seeds, int, "--seed")
    folder = out or _free(Path("images"))
    if out is not None:
        if out.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"):
            raise typer.BadParameter(f"--out {out}: a folder of the images and their grid, as {out.with_suffix('')}")
        _check_free(folder, overwrite)
    bar = StepBar("images")
    with quiet():
        opened = open_pipeline(source, base, _dtype(dtype))
        bar.start(len(asked) * len(numbers) * (len(levels) + both))
        try:
            found = operation(
                opened, asked, strengths=levels, seeds=numbers, both=both, steps=steps, guidance=guidance,
                height=height, width=width, frames=frames, batch_size=batch, show=lambda done: bar.show(done, {}),
            )  # fmt: skip
        finally:
            bar.close()
    write_images(found, folder, overwrite=overwrite)
    typer.echo(f"{len(found)} images in {folder}, all of them in {folder / 'grid.png'}")


def _numbers(words: list[str], kind: type[Number], option: str) -> list[Number]:
    """The numbers of an option that may be repeated, or several with commas."""
    try:
        return [kind(part) for word in words for part in word.split(",") if part.strip()]
    except ValueError as fault:
        raise typer.BadParameter(f"{option} {','.join(words)}: numbers, as 0,1,2") from fault


def _size(text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    try:
        sides = [int(side) for side in text.lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise typer.BadParameter(f"--size {text}: a side in pixels, or WIDTHxHEIGHT, as 512x768")
    return sides[0], sides[-1]


def _dtype(word: str) -> Any:
    import torch

    return None if given.check_dtype(word) == "auto" else getattr(torch, word)


def _free(folder: Path) -> Path:
    """The folder, or the first free name of it with a number."""
    number, found = 1, folder
    while found.exists():
        number += 1
        found = folder.with_name(f"{folder.name}-{number}")
    return found


def _check_free(folder: Path, overwrite: bool) -> None:
    """Refuse a folder with files before anything is generated."""
    from orthotune.errors import OutputError

    if not overwrite and folder.exists() and (folder.is_file() or any(folder.iterdir())):
        raise OutputError(f"--out {folder}", got="a folder that is not empty", do="Add --overwrite, or name another")
