"""``orthotune train``: one finetuning run; of a language model here, of image models in files beside this one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from orthotune.cli import train_control, train_magnitude, train_subject, train_t2i

app = typer.Typer(no_args_is_help=True, help="Finetune a model.")


@app.callback()
def train() -> None:
    """Finetune a model."""


@app.command()
def sft(
    words: list[str] = typer.Argument(
        None, metavar="[RECIPE.yaml] [KEY=VALUE]...", help="A recipe file, then settings that go before its own."
    ),
    method: str = typer.Option(None, "--method", help="oft, coft, lora or full."),
    preset: str = typer.Option(None, "--preset", help="Settings for a model family, see `orthotune presets`."),
    output: Path = typer.Option(None, "--output", "-o", help="Run directory. Default: runs/sft-METHOD."),
) -> None:
    """Finetune a language model; without arguments the small built-in one, on the texts beside it.

    Examples:

      orthotune train sft

      orthotune train sft --method lora steps=100

      orthotune train sft preset=llama model=meta-llama/Llama-3.2-1B data=notes.jsonl
    """
    from orthotune.recipes import load
    from orthotune.recipes.settings import SFTSettings

    recipe, settings = recipe_and_settings(words or [])
    options = {"method": method, "preset": preset, "output": output}
    settings += [f"{key}={value}" for key, value in options.items() if value is not None]
    checked = load.load_settings(SFTSettings, recipe, settings)

    from orthotune.cli.report import report_on
    from orthotune.recipes import sft as job
    from orthotune.runs.processes import is_main, leave

    try:
        record = job.run(checked, say=typer.echo)
    except KeyboardInterrupt:
        if is_main():
            typer.echo(f"Go on with the same command and resume=auto output={checked.output}", err=True)
        raise
    leave()
    if not is_main():
        return
    page = report_on(checked.output)
    show(record)
    for kind, name in record.artifacts.items():
        typer.echo(f"{kind:<10} {checked.output / name}")
    typer.echo(f"{'report':<10} {page}")


app.command("subject")(train_subject.subject)
app.command("control")(train_control.control)
app.command("t2i")(train_t2i.t2i)
app.command("magnitude")(train_magnitude.magnitude)


def recipe_and_settings(words: list[str]) -> tuple[Path | None, list[str]]:
    """Tell the recipe file, which comes first if there is one, from ``KEY=VALUE`` words.

    Example:
        >>> recipe_and_settings(["mine.yaml", "steps=5"])
        (PosixPath('mine.yaml'), ['steps=5'])
    """
    if words and ("=" not in words[0] or Path(words[0]).is_file()):
        return Path(words[0]), words[1:]
    return None, words


def show(record: Any) -> None:
    """Print what was learned and what was forgotten."""
    from rich.console import Console
    from rich.table import Table

    table = Table("nats/token, held out", "before", "after", "change", title=None)
    for name, before, after in (
        ("new domain (learned)", record.new_before, record.new_after),
        ("old domain (forgotten)", record.old_before, record.old_after),
    ):
        known = before is not None and after is not None
        cells = [f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}"] if known else ["-", "-", "not measured"]
        table.add_row(name, *cells)
    Console().print(table)
