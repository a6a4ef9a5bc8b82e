"""``orthotune report``: the page of a run or of a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer


def report(
    folder: Path = typer.Argument(help="Output folder of `orthotune train` or `orthotune compare`, or an adapter's."),
) -> None:
    """Write one self-contained report.html: what was learned and forgotten, plots, settings, layers.

    Example: orthotune report runs/demo
    """
    typer.echo(f"report  {report_on(folder)}")


def report_on(folder: Path) -> Path:
    """Write the page, with the layers of the adapter that the run left behind, if it left one.

    Example:
        >>> report_on(Path("runs/demo"))  # doctest: +SKIP
        PosixPath('runs/demo/report.html')
    """
    from orthotune.report import write_report

    # An adapter's own folder has no record of a run: the page then shows the adapter alone.
    alone = (folder / "adapter_config.json").is_file() and not (folder / "run.json").is_file()
    return write_report(folder, adapter=_layers(folder if alone else folder / "adapter"))


def _layers(adapter: Path) -> dict[str, Any] | None:
    from orthotune.errors import AdapterFileError
    from orthotune.formats.roster import read_adapter
    from orthotune_cli.inspect import collect

    try:
        return collect(read_adapter(adapter))
    except AdapterFileError:
        return None  # full finetuning leaves no adapter, LoRA one without rotations: the page does without the table
