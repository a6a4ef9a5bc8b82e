"""The part of ``orthotune demo`` with pictures: a subject is learned and drawn in new contexts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

SHEET = "subject.png"


def demo_subject(folder: Path, steps: int | None = None) -> Any:
    """Train the image world's subject in ``folder``, write a contact sheet and a report, and say what came of it."""
    from orthotune.cli.report import report_on
    from orthotune.recipes import subject
    from orthotune.recipes.subject_settings import SubjectSettings

    settings = SubjectSettings(**{"output": folder, "steps": steps} if steps else {"output": folder})
    record = subject.run(settings, say=typer.echo)
    subject_sheet(folder, folder / SHEET)
    page = report_on(folder)
    typer.echo("")
    for name, words in (
        ("nine", "pictures that show the digit it had never seen"),
        ("prompt_fidelity", "pictures with that digit, in the colours that were asked for"),
        ("kept", "pictures of other digits that are as they were asked for"),
    ):
        if name in record.scores_after:
            before, after = record.scores_before[name], record.scores_after[name]
            typer.echo(f"{before:4.0%} to {after:4.0%}  {words}")
    typer.echo("")
    typer.echo(f"adapter       {folder / 'adapter'}")
    typer.echo(f"report        {page}")
    typer.echo(f"pictures      {folder / SHEET}")
    return record


def subject_sheet(run: Path, path: Path) -> None:
    """Write a sheet: what was learned from, then each sample's prompt, drawn before and after training."""
    import numpy
    from PIL import Image

    from orthotune.files.atomic import atomic_write
    from orthotune.image.loop.samples import read_samples
    from orthotune.metrics.contact_sheet import draw_sheet
    from orthotune.worlds.image_folders import subject_pictures

    entries = read_samples(run)
    last = max(entry["step"] for entry in entries)
    rows = [("learned from these", [picture.pixels() for picture in subject_pictures()])]
    for prompt in dict.fromkeys(entry["prompt"] for entry in entries):
        for word, step in (("before", 0), ("after", last)):
            files = [entry["file"] for entry in entries if (entry["prompt"], entry["step"]) == (prompt, step)]
            rows.append((f"{word}: {prompt}", [numpy.asarray(Image.open(run / file)) for file in files]))
    with atomic_write(path) as partial:
        draw_sheet([""] * max(len(pictures) for _, pictures in rows), rows, partial)
