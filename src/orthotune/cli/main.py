"""The tree of commands. Only the body of a command's function may import torch: help must be instant."""

from __future__ import annotations

import typer

from orthotune.cli import (
    bench,
    caption,
    chat,
    combine,
    compare,
    convert,
    demo,
    draw,
    evaluate,
    export,
    extract,
    generate,
    identify,
    inspect,
    merge,
    presets,
    report,
    rewind,
    studio,
    toy,
    train,
    worlds,
)
from orthotune.cli.verbs import Verbs

app = typer.Typer(
    name="orthotune",
    cls=Verbs,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Orthogonal finetuning of large models: train, compare, merge and inspect adapters.",
)


def _version(wanted: bool) -> None:
    if not wanted:
        return
    from importlib import metadata

    try:
        version = metadata.version("orthotune")
    except metadata.PackageNotFoundError:
        version = "from a source tree that is not installed"
    typer.echo(f"orthotune {version}")
    raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback when something fails."),
) -> None:
    """Orthogonal finetuning of large models: train, compare, merge and inspect adapters."""


app.add_typer(train.app, name="train")
app.add_typer(compare.app, name="compare")
app.add_typer(evaluate.app, name="evaluate")
app.command("presets")(presets.presets)
app.command("rewind")(rewind.rewind)
app.command("chat")(chat.chat)
app.command("generate")(generate.generate)
app.command("draw")(draw.draw)
app.command("caption")(caption.caption)
app.command("merge")(merge.merge)
app.command("inspect")(inspect.inspect)
app.command("identify")(identify.identify)
app.command("combine")(combine.combine)
app.command("convert")(convert.convert)
app.command("export")(export.export)
app.command("extract")(extract.extract)
app.command("report")(report.report)
app.command("studio")(studio.studio)
app.command("demo")(demo.demo)
app.command("bench")(bench.bench)
app.command("toy")(toy.toy)
app.add_typer(worlds.app, name="worlds")


def main() -> None:
    """The ``orthotune`` command.

    Example:
        >>> main()  # doctest: +SKIP
    """
    app(prog_name="orthotune")


if __name__ == "__main__":  # torchrun and accelerate launch start a module
    main()
