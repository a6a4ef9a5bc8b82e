"""``orthotune rewind``: use a finished run at less than its full strength, where that forgets less."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from orthotune.recipes.strength_choice import Rewound


def rewind(
    run: Path = typer.Argument(help="Run directory of a finished training."),
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
        str | None,
        typer.Option(
            "--old", help="Old texts, or generated: texts that the base writes. Of an image model: a file of prompts."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "--out", "-o", help="Folder to write; default: RUN/rewound.")
    ] = None,
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace what is there."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Choose the strengths of a finished adapter on held-out data, and write the adapter at these.

    A strength of 1 is the adapter as trained, 0 the base. The written adapter loads like any other.

    Examples:

      orthotune rewind runs/sft-oft

      orthotune rewind runs/sft-oft --by kind --forgetting 0.02 --old old-texts.jsonl
    """
    from orthotune.recipes import load
    from orthotune.recipes.strength_choice import FOLDER

    given = load.read(None, settings or ())
    options = {"run": str(run), "by": by, "weight": weight, "forgetting": forgetting, "new": new, "old": old,
               "output": None if output is None else str(output)}  # fmt: skip
    given.values |= {key: value for key, value in options.items() if value is not None}
    given.places |= {key: "command line" for key in options}
    job, kind = _job(run)
    checked: Any = load.check(kind, given)
    found = job(checked, say=lambda line: typer.echo(line, err=as_json), overwrite=overwrite)
    if as_json:
        typer.echo(json.dumps(found.model_dump(mode="json"), indent=2))
        return
    _show(found, checked.output or run / FOLDER)


def _job(run: Path) -> tuple[Any, Any]:
    """The function that rewinds a run of this kind, and the class of its settings."""
    from orthotune.files.json_file import read_json
    from orthotune.recipes.registry import RECIPES

    record = read_json(run / "run.json") if (run / "run.json").is_file() else {}
    recipe = RECIPES.get(str(record.get("recipe")))
    if recipe is not None and not recipe.text:
        from orthotune.recipes import rewind_images

        return rewind_images.run, rewind_images.ImageRewindSettings
    from orthotune.recipes import rewind as rewind_texts

    return rewind_texts.run, rewind_texts.RewindSettings


def _show(found: Rewound, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    digits = 3 if found.tokens else 5  # losses of denoisers are small numbers
    table = Table("strengths", "gain", "forgetting", title=f"{found.unit}, what nothing was chosen by")
    for name, row in found.rows.items():
        table.add_row(name, f"{row['gain']:+.{digits}f}", f"{row['forgetting']:+.{digits}f}")
    Console().print(table)
    _show_scores(found)
    given, half = found.gain_given_up
    saved, other = found.forgetting_saved
    gain, forgetting = f"{given:+.{digits}f} ±{_width(half, digits)}", f"{saved:+.{digits}f} ±{_width(other, digits)}"
    typer.echo(f"given up {gain} of gain, saved {forgetting} of forgetting")
    typer.echo(
        f"chosen in {found.seconds:.0f} s: " + ", ".join(f"{k} {t:g}" for k, t in list(found.strengths.items())[:8])
    )
    for name in ("adapter", "model", "rewind.json", "rewind.png"):
        if (out / name).exists():
            typer.echo(f"{name:<12} {out / name}")


def _width(half: float | None, digits: int) -> str:
    return "?" if half is None else f"{half:.{digits}f}"


def _show_scores(found: Rewound) -> None:
    if not found.scores:
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("score", *found.scores, title="scores of generated images")
    for name in next(iter(found.scores.values())):
        table.add_row(name, *(f"{scores[name]:.3f}" for scores in found.scores.values()))
    Console().print(table)
