"""``orthotune toy``: why angles matter, on photographs, in about a minute."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from orthotune.experiments.toy.experiment import ToyResult


def toy(
    out: Path = typer.Option(
        Path("runs/toy"), "--out", "--output", "-o", help="Output folder; if it exists, a number is added to its name."
    ),
    steps: int = typer.Option(800, min=1, help="Training steps, each with a batch of 32 patches."),
    patches: int = typer.Option(400, min=8, help="Training patches of each photograph."),
    seed: int = typer.Option(0, help="Seed of patches, initial weights and batches."),
) -> None:
    """Reconstruct photographs from the angles of activations only, and from their magnitudes only.

    A small autoencoder is trained with ordinary activations on photographs that ship with scikit-image.

    Example: orthotune toy
    """
    from orthotune.cli.demo import free_folder
    from orthotune.experiments.toy import experiment as job
    from orthotune.files.output import new_folder

    settings = job.ToySettings(steps=steps, patches=patches, seed=seed)
    target = free_folder(out)
    with new_folder(target) as folder:
        result = job.run(settings, say=typer.echo)
        job.write(result, settings, folder)
    _show(result)
    for name in ("toy.json", "toy.csv", "toy.png"):
        typer.echo(f"{name:<9} {target / name}")


def _show(result: ToyResult) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("activations", "in", title="reconstruction of held-out patches", title_justify="left")
    table.add_column("error", justify="right")
    table.add_column("correlation", justify="right")
    for found in result.reconstructions:
        table.add_row(found.part, found.where or "-", f"{found.error:.4f}", f"{found.correlation:+.3f}")
    table.add_row("the mean colour of each patch", "-", f"{result.mean_colour_error:.4f}", "-")
    Console().print(table)
