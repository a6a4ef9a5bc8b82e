"""Command-line options for facts that some adapter files do not record, the same in every command."""

from __future__ import annotations

from typing import Any

import typer

SERIES = typer.Option(
    None, "--series", help="Neumann series of the training, where the file does not record it: current or legacy."
)
COFT = typer.Option(
    None, "--coft/--no-coft", help="Whether the adapter was trained with COFT, where the file does not record it."
)
EPS = typer.Option(None, "--eps", help="COFT radius of the training, where the file does not record it.")
PROJECT = typer.Option(None, "--project", help="Project that wrote a file with a shared .R: oft-control or oft-db.")
BOFT_CONV = typer.Option(
    None, "--boft-conv", help="Layout of convolutions in a BOFT file of PEFT: rows, or scrambled (legacy)."
)


def read_options(
    series: str | None, coft: bool | None, eps: float | None, project: str | None, boft_conv: str | None
) -> dict[str, Any]:
    """The options that were given, as fields of :class:`orthotune.formats.read_options.ReadOptions`.

    Example:
        >>> read_options("legacy", None, None, None, None)
        {'series': 'legacy'}
    """
    options = {"series": series, "coft": coft, "eps": eps, "project": project, "boft_conv": boft_conv}
    return {name: value for name, value in options.items() if value is not None}
