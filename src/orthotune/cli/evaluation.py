"""Output of all ``orthotune evaluate`` commands: JSON, CSV, a contact sheet, and a table on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from orthotune.metrics.measured import Measured


def run(
    name: str, out: Path | None, overwrite: bool, *arguments: Any, inputs: Sequence[Any] = (), **settings: Any
) -> None:
    """Run the measure ``name`` of the registry, write its results to ``out`` and print them.

    An existing ``out`` is refused before anything is measured. With ``overwrite``, ``out`` must still not contain one
    of the ``inputs`` or a path among the arguments.

    Example:
        >>> run("canny", None, False, Path("results"), Path("edges"))  # doctest: +SKIP
    """
    import transformers

    from orthotune.files.output import new_folder
    from orthotune.metrics.registry import measure

    target = out or Path("runs") / f"evaluate-{name}"
    if overwrite:
        _refuse_inputs(target, *inputs, *arguments, *settings.values())
    transformers.utils.logging.disable_progress_bar()
    with new_folder(target, overwrite=overwrite) as folder:
        measured = measure(name).function(*arguments, **settings)
        write(measured, folder)
    show(measured, measure(name).headline)
    for file in sorted(target.iterdir()):
        typer.echo(f"{file.name:<16} {file}")


def run_measure(name: str, *, out: Path | None, overwrite: bool, **values: Any) -> None:
    """Run a measure with the values of its options; options that were not given are left to the measure.

    Args:
        name: of the measure in the registry of measures.
        out: output folder.
        overwrite: replace what is at ``out``.
        values: arguments and options by the names of the measure's parameters.
    """
    given = {key: value.value if isinstance(value, Enum) else value for key, value in values.items()}
    run(name, out, overwrite, **{key: value for key, value in given.items() if value is not None})


def _refuse_inputs(target: Path, *inputs: Any) -> None:
    from orthotune.errors import OutputError

    for path in inputs:
        if not isinstance(path, str | Path) or not Path(path).exists():
            continue
        found = Path(path).resolve()
        if target.resolve() in (found, *found.parents):
            raise OutputError(
                f"--out {target}", got=f"a folder that contains the input {path}", do="Name another folder"
            )


def write(measured: Measured, folder: Path) -> None:
    """Write ``NAME.json``, and, where there are rows and images, ``NAME.csv`` and ``NAME.png``."""
    from orthotune.files.json_file import write_json
    from orthotune.files.tables import write_table
    from orthotune.metrics.contact_sheet import draw_sheet

    write_json(folder / f"{measured.measure}.json", measured.record(), ascii_only=False)
    if measured.rows:
        write_table(folder / f"{measured.measure}.csv", measured.rows)
    if measured.sheet:
        draw_sheet(measured.columns, measured.sheet, folder / f"{measured.measure}.png")


def show(measured: Measured, headline: tuple[str, ...]) -> None:
    """Print the figures, and on stderr the skipped files with the reason."""
    from rich.console import Console
    from rich.table import Table

    keys = [key for key in headline if key in measured.summary]
    keys += [key for key in measured.summary if key not in keys]
    counted = (
        f", {len(measured.rows)} {'layers' if measured.measure == 'energy' else 'images'}" if measured.rows else ""
    )
    table = Table(title=measured.measure + counted, title_justify="left", header_style="bold")
    for key in keys:
        table.add_column(key.replace("_", " "), justify="right")
    table.add_row(*(_figure(measured.summary[key]) for key in keys))
    Console().print(table)
    for why in measured.skipped[:5]:
        typer.echo(f"skipped: {why}", err=True)
    if measured.skipped:
        typer.echo(f"{len(measured.skipped)} skipped, all listed in {measured.measure}.json", err=True)


def _figure(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.3e}" if value and abs(value) < 1e-3 else f"{value:,.4f}"
