"""``orthotune combine``: several adapters become one."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

import typer


class CombinationType(str, Enum):
    """The ways to combine."""

    GEODESIC = "geodesic"
    PRODUCT = "product"
    TANGENT = "tangent"
    TIES = "ties"
    SVD_LORA = "svd_lora"


def combine(
    adapters: list[str] = typer.Argument(help="ADAPTER:WEIGHT, several; 1 is the whole adapter, as without :WEIGHT."),
    out: Path = typer.Option(..., "--out", "-o", help="Folder of the new adapter; appears when it is complete."),
    how: CombinationType = typer.Option(CombinationType.GEODESIC, "--type", help="geodesic: mean. product: in order."),
    density: float = typer.Option(None, "--density", help="ties: the share of the numbers that is kept."),
    base: Path = typer.Option(None, "--base", "-b", help="svd_lora: the base, as for export."),
    rank: int = typer.Option(None, "--rank", min=1, help="svd_lora: rank of every layer."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace what is at --out."),
) -> None:
    """Combine adapters of one base into a single one that loads like any other.

    `geodesic`, `tangent` and `ties` do not depend on the order. `product` does: the first adapter acts first.
    `svd_lora` adds up the changes of the weights and cuts them to a low rank, which is no rotation any more.

    Example: orthotune combine style:0.7 subject:0.3 --out both
    """
    from orthotune.operations.combine import combine as combined

    parted = [_parted(word) for word in adapters]
    done = combined(
        [path for path, _ in parted], [weight for _, weight in parted], out, how.value, density=density, base=base,
        rank=rank, overwrite=overwrite,
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


def _parted(word: str) -> tuple[Path, float]:
    """A path and its weight; a colon of the path itself is left alone."""
    path, colon, weight = word.rpartition(":")
    if not colon:
        return Path(word), 1.0
    try:
        return Path(path), float(weight)
    except ValueError:
        if Path(word).exists():
            return Path(word), 1.0
        from orthotune.errors import ConfigError

        raise ConfigError(f"'{word}'", needed="ADAPTER:WEIGHT with a number, as style:0.7") from None
