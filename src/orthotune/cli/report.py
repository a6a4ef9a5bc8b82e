"""``orthotune report``: write the HTML report of a run or of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer


def report(
    folder: Path = typer.Argument(help="Output folder of `orthotune train` or `orthotune compare`, or adapter folder."),
    compare: Path = typer.Option(
        None, "--compare", help="Another adapter or run: add the angle between both, layer by layer."
    ),
) -> None:
    """Write one self-contained report.html: what was learned and forgotten, plots, settings, layers.

    Examples:

      orthotune report runs/demo

      orthotune report runs/demo --compare runs/other
    """
    typer.echo(f"report  {report_on(folder, compare)}")


def report_on(folder: Path, compare: Path | None = None) -> Path:
    """Write the report, with the layers of the run's adapter if there is one.

    Args:
        folder: folder of a run, a comparison or an adapter.
        compare: another adapter, or the folder of a run: the report then shows the distance of both adapters.

    Raises:
        AdapterFileError: with ``compare``: one of both is no readable adapter, or they have no layer in common.

    Example:
        >>> report_on(Path("runs/demo"))  # doctest: +SKIP
        PosixPath('runs/demo/report.html')
    """
    from orthotune.report import write_report

    # An adapter folder has no run.json: the report then shows the adapter only.
    alone = (folder / "adapter_config.json").is_file() and not (folder / "run.json").is_file()
    adapter = folder if alone else folder / "adapter"
    return write_report(
        folder, adapter=_layers(adapter), compared=None if compare is None else _beside(adapter, compare)
    )


def _beside(adapter: Path, other: Path) -> dict[str, Any]:
    from orthotune.operations.distance import distance

    other = other / "adapter" if (other / "run.json").is_file() else other
    return distance(adapter, other)


def _layers(adapter: Path) -> dict[str, Any] | None:
    from orthotune.errors import AdapterFileError
    from orthotune.operations.inspect import inspect

    try:
        found = inspect(adapter)
    except AdapterFileError:
        return None  # full finetuning has no adapter
    return None if found["format"] == "peft-lora" else found  # the table of layers is one of rotations
