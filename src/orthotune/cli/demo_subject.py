"""The image part of ``orthotune demo``: learn a subject and generate images of it in new contexts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

SHEET = "subject.png"


def demo_subject(folder: Path, steps: int | None = None) -> Any:
    """Train the built-in image model on its subject; write a contact sheet and a report, and print the scores."""
    from orthotune.cli.report import report_on
    from orthotune.recipes import subject
    from orthotune.recipes.subject_settings import SubjectSettings

    settings = SubjectSettings(**{"output": folder, "steps": steps} if steps else {"output": folder})
    record = subject.run(settings, say=typer.echo)
    subject_sheet(folder, folder / SHEET)
    page = report_on(folder)
    typer.echo("")
    for name, description in (
        ("nine", "of the images show the digit that the base model had never seen"),
        ("prompt_fidelity", "of the images show that digit in the colours of the prompt"),
        ("kept", "of the images of other digits still match their prompt"),
    ):
        if name in record.scores_after:
            before, after = record.scores_before[name], record.scores_after[name]
            typer.echo(f"{before:4.0%} to {after:4.0%}  {description}")
    typer.echo("")
    typer.echo(f"adapter       {folder / 'adapter'}")
    typer.echo(f"report        {page}")
    typer.echo(f"images        {folder / SHEET}")
    return record


def subject_sheet(run: Path, path: Path) -> None:
    """Write a contact sheet: the training images, then the images of each prompt before and after training."""
    import numpy
    from PIL import Image

    from orthotune.files.atomic import atomic_write
    from orthotune.image.loop.samples import read_samples
    from orthotune.metrics.contact_sheet import draw_sheet
    from orthotune.worlds.image_folders import subject_images

    entries = read_samples(run)
    last = max(entry["step"] for entry in entries)
    rows = [("learned from these", [image.pixels() for image in subject_images()])]
    for prompt in dict.fromkeys(entry["prompt"] for entry in entries):
        for label, step in (("before", 0), ("after", last)):
            files = [entry["file"] for entry in entries if (entry["prompt"], entry["step"]) == (prompt, step)]
            rows.append((f"{label}: {prompt}", [numpy.asarray(Image.open(run / file)) for file in files]))
    with atomic_write(path) as partial:
        draw_sheet([""] * max(len(images) for _, images in rows), rows, partial)
