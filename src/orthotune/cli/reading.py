"""The options by which a user says what an adapter's file does not say about itself, alike in every verb."""

from __future__ import annotations

from typing import Any

import typer

SERIES = typer.Option(None, "--series", help="What the file does not say: current or legacy Neumann series.")
COFT = typer.Option(None, "--coft/--no-coft", help="The same: whether the run kept to a ball.")
EPS = typer.Option(None, "--eps", help="The same: radius of that ball.")
PROJECT = typer.Option(None, "--project", help="The same: oft-control or oft-db, for a shared .R.")
BOFT_CONV = typer.Option(None, "--boft-conv", help="The same: rows or scrambled, for PEFT's BOFT.")


def said(
    series: str | None, coft: bool | None, eps: float | None, project: str | None, boft_conv: str | None
) -> dict[str, Any]:
    """What was said, as fields of :class:`orthotune.formats.read_options.ReadOptions`.

    Example:
        >>> said("legacy", None, None, None, None)
        {'series': 'legacy'}
    """
    options = {"series": series, "coft": coft, "eps": eps, "project": project, "boft_conv": boft_conv}
    return {name: value for name, value in options.items() if value is not None}
