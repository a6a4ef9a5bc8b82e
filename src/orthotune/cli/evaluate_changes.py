"""``orthotune evaluate changes``: what a finished run changed in predictions and activations, layer by layer."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path


def changes(*, run: Path, tokens: int, as_json: bool) -> None:
    """Measure and print what a run changed on either domain.

    Args:
        run: run directory of a finished `orthotune train sft`.
        tokens: of either domain that are measured.
        as_json: print one JSON object.
    """
    import typer

    from orthotune.experiments.changes import changes_of

    found = changes_of(run, tokens)
    if as_json:
        typer.echo(json.dumps({domain: asdict(one) for domain, one in found.items()}, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    for domain, name in (("new", "target"), ("old", "source")):
        one = found[domain]
        typer.echo(
            f"{name} domain: {one.nats_before:.3f} -> {one.nats_after:.3f} nats/token, "
            f"KL(base || finetuned) {one.kl:.4f}, same choice {one.same_choice:.1%}"
        )
    table = Table(
        "layer", "target: shift", "no rotation", "Gram", "CKA", "source: shift", "no rotation", "Gram", "CKA",
        title="change of activations",
    )  # fmt: skip
    for new, old in zip(found["new"].layers, found["old"].layers, strict=True):
        cells = [f"{value:.4f}" for one in (new, old) for value in (one.shift, one.procrustes, one.gram, one.cka)]
        table.add_row("embedding" if new.layer == 0 else str(new.layer), *cells)
    Console().print(table)
