"""``orthotune convert``: write an adapter file in the format of another tool."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from orthotune.cli.bytes_bar import bytes_bar
from orthotune.cli.reading import BOFT_CONV, COFT, EPS, PROJECT, SERIES, read_options

if TYPE_CHECKING:
    from orthotune.operations.convert import Converted


def _targets() -> str:
    from orthotune.formats.registry import targets  # loads neither torch nor safetensors

    return f"{', '.join(targets())}; or diff."


def convert(
    adapter: Path = typer.Argument(help="Adapter: a folder as PEFT writes it, or one file."),
    out: Path = typer.Argument(help="Output file, or output folder for the formats of PEFT and orthotune."),
    to: str = typer.Option(..., "--to", help=f"Target format: {_targets()}"),
    base: Path = typer.Option(
        None, "--base", "-b", help="Local base model; some formats need its layer names or shapes."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Print what would be written, and write nothing."),
    approximate: bool = typer.Option(
        False, "--approximate", help="Allow a conversion with an error; the error is printed."
    ),
    linear: bool = typer.Option(False, "--linear", help="State that no layer of the adapter is a convolution."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace what is at OUT."),
    series: str = SERIES,
    coft: bool = COFT,
    eps: float = EPS,
    project: str = PROJECT,
    boft_conv: str = BOFT_CONV,
) -> None:
    """Convert an adapter to the format of another tool.

    Only lossless conversions are written; --approximate allows others.

    Example: orthotune convert runs/demo/adapter adapter.safetensors --to kohya-oft-v2 --approximate
    """
    from orthotune.operations.convert import convert as converted

    with bytes_bar() as progress:
        done = converted(
            adapter, out, to, base=base, dry_run=dry_run, approximate=approximate, linear=linear, overwrite=overwrite,
            progress=progress, **read_options(series, coft, eps, project, boft_conv),
        )  # fmt: skip
    for line in lines(done):
        typer.echo(line)


def lines(done: Converted) -> list[str]:
    """The lines that the command prints.

    Example:
        >>> from orthotune.operations.convert import Converted
        >>> lines(Converted("kohya-oft", "diff", 2))[0]
        'layers        2'
    """
    found = [f"layers        {done.layers}", f"from          {done.source}"]
    found += [f"note          {note}" for note in done.notes]
    if done.plan is None:
        found.append("to            diff, exact for this base only, and not an orthogonal adapter any more")
        if done.exported is None:
            return [*found, "Nothing was written."]
        found += [str(done.exported.report), f"{done.exported.changes} tensors of change, exact for this base only"]
        return [*found, f"written  {done.written}"]
    from orthotune.files.names import shortened
    from orthotune.formats.registry import targets

    found.append(f"to            {done.target} ({targets()[done.target].tool}), {done.plan.verdict}")
    found += [f"note          {note}" for note in done.plan.notes]
    if done.spelling is not None and done.spelling.known is not None:
        found.append(f"matches       {done.spelling.known} of {done.layers} layers have names that the tool knows")
        if done.spelling.unknown:
            found.append(f"ignored       by the tool: {shortened(done.spelling.unknown)}")
    if done.written is None:
        found += [f"because       {reason}: {len(names)} layers" for reason, names in done.plan.reasons.items()]
        found += [f"needs --base  {reason}: {len(names)} layers" for reason, names in done.plan.needs_base.items()]
        return [*found, "Nothing was written."]
    if done.errors:
        name = max(done.errors, key=lambda layer: done.errors[layer])
        found.append(f"error         {done.errors[name]:.2e} at most (relative change of a weight), in {name}")
    return [*found, f"written       {done.written}"]
