"""``orthotune rewind``: use a finished run at less than its full strength, where that forgets less."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from orthotune.recipes.rewind import Rewound


def rewind(
    run: Path = typer.Argument(help="Run directory of a finished `orthotune train sft`."),
    settings: Annotated[
        list[str] | None, typer.Argument(help="KEY=VALUE settings, as tokens=4096 or seed=1.", metavar="[KEY=VALUE]...")
    ] = None,
    by: str = typer.Option("one", "--by", help="one strength, or one by kind, projection, depth or layer."),
    weight: float = typer.Option(1.0, "--weight", help="Nats of gain that a nat of forgetting is worth."),
    forgetting: Annotated[
        float | None, typer.Option("--forgetting", help="At most so many nats per token may be forgotten.")
    ] = None,
    new: Annotated[str | None, typer.Option("--new", help="Held-out new texts; default: those of the run.")] = None,
    old: Annotated[
        str | None, typer.Option("--old", help="Old texts, or generated: texts that the base writes.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write; default: RUN/rewound.")
    ] = None,
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace what is there."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Choose the strengths of a finished adapter on held-out texts, and write the adapter at these.

    A strength of 1 is the adapter as trained, 0 the base. The written adapter loads like any other.

    Examples:

      orthotune rewind runs/sft-oft

      orthotune rewind runs/sft-oft --by kind --forgetting 0.02 --old old-texts.jsonl
    """
    from orthotune.recipes import load
    from orthotune.recipes.rewind import FOLDER, RewindSettings
    from orthotune.recipes.rewind import run as job

    given = load.read(None, settings or ())
    options = {"run": str(run), "by": by, "weight": weight, "forgetting": forgetting, "new": new, "old": old,
               "output": None if output is None else str(output)}  # fmt: skip
    given.values |= {key: value for key, value in options.items() if value is not None}
    given.places |= {key: "command line" for key in options}
    checked = load.check(RewindSettings, given)
    found = job(checked, say=lambda line: typer.echo(line, err=as_json), overwrite=overwrite)
    if as_json:
        typer.echo(json.dumps(found.model_dump(mode="json"), indent=2))
        return
    _show(found, checked.output or run / FOLDER)


def _show(found: Rewound, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("strengths", "gain", "forgetting", title="nats per token, texts that nothing was chosen by")
    for name, row in found.rows.items():
        table.add_row(name, f"{row['gain']:+.3f}", f"{row['forgetting']:+.3f}")
    Console().print(table)
    given, half = found.gain_given_up
    saved, other = found.forgetting_saved
    typer.echo(f"given up {given:+.3f} ±{half:.3f} nats of gain, saved {saved:+.3f} ±{other:.3f} nats of forgetting")
    typer.echo(
        f"chosen in {found.seconds:.0f} s: " + ", ".join(f"{k} {t:g}" for k, t in list(found.strengths.items())[:8])
    )
    for name in ("adapter", "model", "rewind.json", "rewind.png"):
        if (out / name).exists():
            typer.echo(f"{name:<12} {out / name}")
