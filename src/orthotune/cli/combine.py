"""``orthotune combine``: several adapters become one."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

import typer


class CombinationType(str, Enum):
    """The methods of combining adapters."""

    GEODESIC = "geodesic"
    PRODUCT = "product"
    TANGENT = "tangent"
    TIES = "ties"
    SVD_LORA = "svd_lora"


def combine(
    adapters: list[str] = typer.Argument(
        help="Two or more of ADAPTER[:WEIGHT]; the default weight 1 uses an adapter as trained."
    ),
    out: Path = typer.Option(
        ..., "--out", "--output", "-o", help="Folder of the new adapter; appears when it is complete."
    ),
    how: CombinationType = typer.Option(CombinationType.GEODESIC, "--type", help="How to combine; explained above."),
    density: float = typer.Option(
        None, "--density", help="Only for ties: the share of the parameters that is kept, 0 to 1."
    ),
    correction: bool = typer.Option(
        False, "--magnitude-correction", help="Only for tangent and ties: keep the size where directions cancel."
    ),
    base: Path = typer.Option(
        None, "--base", "-b", help="Only for svd_lora: the base model, as for `orthotune export`."
    ),
    rank: int = typer.Option(None, "--rank", min=1, help="Only for svd_lora: the rank of each layer."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace what is at --out."),
) -> None:
    """Combine adapters of one base into a single one that loads like any other.

    `geodesic` is the weighted mean of the rotations, `tangent` and `ties` average their parameters; the order does not
    matter. `product` applies the adapters one after the other, the first one first. `svd_lora` adds up the changes of
    the weights and approximates the sum by a LoRA, which is not a rotation.

    Example: orthotune combine style:0.7 subject:0.3 --out both
    """
    from orthotune.operations.combine import combine as combined

    parted = [_parted(argument) for argument in adapters]
    done = combined(
        [path for path, _ in parted], [weight for _, weight in parted], out, how.value, density=density, base=base,
        rank=rank, magnitude_correction=correction, overwrite=overwrite,
    )  # fmt: skip
    for path, weight in parted:
        typer.echo(f"{weight:<13g} {path}")
    for note in done.notes:
        typer.echo(f"note          {note}")
    typer.echo(f"layers        {done.layers}")
    if how is CombinationType.SVD_LORA:
        typer.echo("type          svd_lora, an approximation")
        typer.echo(f"error         {done.error:.2e} at most (relative, of a change), in {done.layer}")
        typer.echo(f"written       {out}, a LoRA")
    else:
        order = ", the first acts first" if how is CombinationType.PRODUCT else ""
        typer.echo(f"type          {how.value}{order}")
        typer.echo(f"written       {out}")


def _parted(argument: str) -> tuple[Path, float]:
    """Split ADAPTER:WEIGHT; a colon that belongs to the path stays in the path."""
    path, colon, weight = argument.rpartition(":")
    if not colon:
        return Path(argument), 1.0
    try:
        return Path(path), float(weight)
    except ValueError:
        if Path(argument).exists():
            return Path(argument), 1.0
        from orthotune.errors import ConfigError

        raise ConfigError(f"'{argument}'", needed="ADAPTER:WEIGHT where WEIGHT is a number, as in style:0.7") from None
