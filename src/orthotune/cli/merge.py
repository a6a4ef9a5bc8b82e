"""``orthotune merge``: merge an adapter into its base and save an ordinary model."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, cast

import typer

if TYPE_CHECKING:
    from orthotune.rotation.strength import Kind


class StrengthKind(str, Enum):
    """Interpolation for strengths other than 0 and 1: of the angles, of the weights, or of the rotation matrix."""

    GEODESIC = "geodesic"
    LINEAR = "linear"
    ROTATION = "rotation"


STRENGTH_KIND = (
    "Interpolation for strengths other than 0 and 1: geodesic scales every rotation angle, linear interpolates the "
    "weights, rotation interpolates the rotation matrix. Default: that of the tool that wrote the file, or geodesic."
)


class DType(str, Enum):
    """The dtypes in which a merged model can be saved."""

    AUTO = "auto"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


def merge(
    adapter: Path = typer.Argument(help="Adapter: a folder as PEFT writes it, or a file of any readable format."),
    out: Path = typer.Option(
        ..., "--out", "--output", "-o", help="Folder for the merged model; appears when it is complete."
    ),
    base: str = typer.Option(
        None, "--base", "-b", help="Base model: path or hub name. Default: the one that the adapter records."
    ),
    dtype: DType = typer.Option(DType.AUTO, help="dtype of the merged model; auto keeps that of the base."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace what is at --out."),
    stream: bool = typer.Option(
        False, "--stream", help="Merge from file to file, with one tensor in memory at a time."
    ),
    dequantize: bool = typer.Option(
        False, "--dequantize", help="Merge quantized layers in float and save them unquantized."
    ),
    quantization: str = typer.Option(
        None, "--quantization", help="Quantize the base on loading, as it was in training (nf4, ...)."
    ),
    strength: float = typer.Option(
        1.0, "--strength", "-t", help="Strength of the adapter: 0 is the base, 1 the adapter as trained."
    ),
    kind: StrengthKind = typer.Option(None, "--strength-kind", help=STRENGTH_KIND),
) -> None:
    """Merge an adapter into its base model and save an ordinary model, with its tokenizer.

    Example: orthotune merge runs/demo/adapter --out merged
    """
    if stream and dtype is not DType.AUTO:
        raise typer.BadParameter("--stream keeps the dtypes of the files and cannot be used with --dtype")
    if stream and (dequantize or quantization):
        raise typer.BadParameter(
            "--stream merges unquantized files only and cannot be used with --dequantize or --quantization"
        )
    from orthotune.operations.merge import merge as merged

    def tell(number: int, count: int, name: str) -> None:
        typer.echo(f"shard {number} of {count}  {name}", err=True)

    merged(
        adapter, out, base=base, dtype=dtype.value, stream=stream, overwrite=overwrite, dequantize=dequantize,
        quantization=quantization, strength=strength, kind=cast("Kind | None", kind and kind.value), progress=tell,
    )  # fmt: skip
    typer.echo(f"merged model  {out}")
