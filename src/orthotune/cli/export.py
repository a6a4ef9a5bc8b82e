"""``orthotune export``: an adapter of any format becomes a merged model, a LoRA, or dense differences."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, cast

import typer

from orthotune.cli.bytes_bar import bytes_bar
from orthotune.cli.merge import StrengthKind
from orthotune.cli.reading import BOFT_CONV, COFT, EPS, PROJECT, SERIES, said

if TYPE_CHECKING:
    from orthotune.operations.fitting.report import LoadReport
    from orthotune.rotation import strength as strengths


class Kind(str, Enum):
    """What an adapter can be exported to."""

    DENSE = "dense"
    LORA = "lora"
    DIFF = "diff"


def export(
    adapter: Path = typer.Argument(help="Adapter of any readable format: a folder or a file."),
    out: Path = typer.Argument(help="Folder, or file where the base is one file; appears when it is complete."),
    base: Path = typer.Option(..., "--base", "-b", help="Base: model folder, diffusers folder, or .safetensors file."),
    to: Kind = typer.Option(..., "--to", help="dense: merged model. lora: by SVD. diff: the change of each weight."),
    rank: int = typer.Option(None, "--rank", min=1, help="LoRA: rank of every layer, or the most with --error."),
    error: float = typer.Option(None, "--error", min=0.0, help="LoRA: relative error of every layer at most."),
    series: str = SERIES,
    coft: bool = COFT,
    eps: float = EPS,
    project: str = PROJECT,
    boft_conv: str = BOFT_CONV,
    strength: float = typer.Option(1.0, "--strength", "-t", help="0 the base, 0.5 half of every angle, 1 the adapter."),
    kind: StrengthKind = typer.Option(
        None, "--strength-kind", help="What lies between. Default: as the file's own tool does, or geodesic."
    ),
    partial: bool = typer.Option(False, "--partial", help="Leave out layers of the adapter that the base has not."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace what is at OUT."),
) -> None:
    """Export an adapter, with the weights of its base, for tools that know no rotations.

    `dense` streams the base's files to merged ones, about one tensor in memory at a time; when it is interrupted, the
    same command goes on where it stopped. `lora` prints and writes the relative error of each layer. `diff` is exact.

    Examples:

      orthotune export style.safetensors merged --base stable-diffusion-v1-5 --to dense

      orthotune export runs/sft/adapter lora --base models/llama --to lora --error 0.05
    """
    if to is not Kind.LORA and (rank is not None or error is not None):
        raise typer.BadParameter("--rank and --error are for --to lora")
    if to is Kind.LORA and rank is None and error is None:
        raise typer.BadParameter("--to lora needs --rank or --error")
    from orthotune.operations.export import LowRankLayer
    from orthotune.operations.export import export as exported

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
            progress=progress, **said(series, coft, eps, project, boft_conv),
        )  # fmt: skip
    if to is Kind.DIFF:
        typer.echo(f"{done.changes} tensors of change, exact for this base alone")
    if to is Kind.LORA:
        worst = max(done.layers, key=lambda layer: layer.error)
        typer.echo(f"{worst.error:9.2e}  at most, in {worst.layer}")
    typer.echo(f"written  {out}")
