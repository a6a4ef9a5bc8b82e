"""``orthotune export``: write an adapter of any format as a merged model, a LoRA, or weight differences."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, cast

import typer

from orthotune.cli.bytes_bar import bytes_bar
from orthotune.cli.merge import STRENGTH_KIND, StrengthKind
from orthotune.cli.reading import BOFT_CONV, COFT, EPS, PROJECT, SERIES, read_options

if TYPE_CHECKING:
    from orthotune.operations.fitting.report import LoadReport
    from orthotune.rotation import strength as strengths


class Kind(str, Enum):
    """The targets of an export."""

    DENSE = "dense"
    LORA = "lora"
    DIFF = "diff"


def export(
    adapter: Path = typer.Argument(help="Adapter of any readable format: a folder or a file."),
    out: Path = typer.Argument(
        help="Output folder, or output file if the base is one file; appears when it is complete."
    ),
    base: Path = typer.Option(
        ..., "--base", "-b", help="Base model: its folder, a diffusers folder, or a .safetensors file."
    ),
    to: Kind = typer.Option(..., "--to", help="dense: merged model. lora: by SVD. diff: the change of each weight."),
    rank: int = typer.Option(
        None, "--rank", min=1, help="Only for lora: rank of each layer; with --error, the largest rank."
    ),
    error: float = typer.Option(None, "--error", min=0.0, help="Only for lora: largest relative error of each layer."),
    series: str = SERIES,
    coft: bool = COFT,
    eps: float = EPS,
    project: str = PROJECT,
    boft_conv: str = BOFT_CONV,
    strength: float = typer.Option(
        1.0, "--strength", "-t", help="Strength of the adapter: 0 is the base, 1 the adapter as trained."
    ),
    kind: StrengthKind = typer.Option(None, "--strength-kind", help=STRENGTH_KIND),
    partial: bool = typer.Option(False, "--partial", help="Skip layers of the adapter that the base does not have."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace what is at OUT."),
) -> None:
    """Export an adapter with the weights of its base, for tools that cannot load rotations.

    `dense` writes merged files of the base, with about one tensor in memory at a time; after an interruption, the same
    command continues. `lora` prints and writes the relative error of each layer. `diff` is exact.

    Examples:

      orthotune export style.safetensors merged --base stable-diffusion-v1-5 --to dense

      orthotune export runs/sft/adapter lora --base models/llama --to lora --error 0.05
    """
    if to is not Kind.LORA and (rank is not None or error is not None):
        raise typer.BadParameter("--rank and --error are for --to lora")
    if to is Kind.LORA and rank is None and error is None:
        raise typer.BadParameter("--to lora needs --rank or --error")
    from orthotune.operations.export import export as exported
    from orthotune.tuner.lora_conversion import LowRankLayer

    def tell(layer: LowRankLayer) -> None:
        typer.echo(f"{layer.error:9.2e}  rank {layer.rank:<4} {layer.layer}")

    def report(found: LoadReport) -> None:
        typer.echo(str(found))
        if to is Kind.LORA:
            typer.echo("relative error of each layer")

    with bytes_bar() as progress:
        done = exported(
            adapter, out, base, to.value, rank=rank, error=error, strict=not partial, overwrite=overwrite,
            strength=strength, kind=cast("strengths.Kind | None", kind and kind.value), on_report=report, on_layer=tell,
            progress=progress, **read_options(series, coft, eps, project, boft_conv),
        )  # fmt: skip
    if to is Kind.DIFF:
        typer.echo(f"{done.changes} tensors of change, exact for this base only")
    if to is Kind.LORA:
        worst = max(done.layers, key=lambda layer: layer.error)
        typer.echo(f"{worst.error:9.2e}  at most, in {worst.layer}")
    typer.echo(f"written  {out}")
