"""``orthotune caption``: let a local model write captions beside images."""

from __future__ import annotations

from pathlib import Path

import typer

from orthotune.cli.plain_text import plain


def caption(
    folder: Path = typer.Argument(help="Folder of images, with its subfolders."),
    model: str = typer.Option(
        ..., "--model", "-m", help="Image-to-text model of transformers: a folder or a hub name, as a BLIP or a LLaVA."
    ),
    question: str = typer.Option(None, "--question", help="What a model that follows instructions is asked."),
    prefix: str = typer.Option("", "--prefix", help="Put before each caption, as 'sks dog, '."),
    suffix: str = typer.Option("", "--suffix", help="Put after each caption."),
    replace: list[str] = typer.Option([], "--replace", help="OLD=NEW in each caption; may be repeated."),
    max_tokens: int = typer.Option(60, "--max-tokens", min=1, help="The most tokens of a caption."),
    batch: int = typer.Option(4, "--batch", min=1, help="Images captioned together."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Also caption images that have a caption."),
) -> None:
    """Write a caption into the .txt file beside each image that has none.

    Read them afterwards: a caption should name what is not the subject, and hold the word for the subject.

    Examples:

      orthotune caption dog --model models/blip --prefix "sks dog, "

      orthotune caption dog -m models/llava --question "List tags, divided by commas." --replace "a dog=sks dog"
    """
    from orthotune.image.data.written_captions import QUESTION, Wording, replacements, write_captions
    from orthotune.runs.progress import StepBar
    from orthotune.runs.quiet import quiet

    wording = Wording(question or QUESTION, prefix, suffix, replacements(replace), max_tokens)
    bar, began = StepBar("captions"), False

    def show(done: int, total: int) -> None:
        nonlocal began
        if not began:
            bar.start(total)
            began = True
        bar.show(done, {})

    with quiet():
        try:
            found = write_captions(
                folder, model, wording=wording, overwrite=overwrite, batch_size=batch, say=typer.echo, show=show
            )
        finally:
            bar.close()
    for name, text in list(found.items())[:3]:
        typer.echo(plain(f"{name}: {text}"))
    typer.echo(
        f"{len(found)} captions written in {folder}"
        if found
        else f"All images in {folder} have captions; --overwrite replaces them."
    )
