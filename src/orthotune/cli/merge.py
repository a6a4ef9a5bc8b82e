"""``orthotune merge``: an adapter and its base become an ordinary model."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, cast

import typer

if TYPE_CHECKING:
    from orthotune.rotation.strength import Kind


class StrengthKind(str, Enum):
    """What a strength between 0 and 1 is: a part of each angle, a part of the change, or a part of the rotation's."""

    GEODESIC = "geodesic"
    LINEAR = "linear"
    ROTATION = "rotation"


class DType(str, Enum):
    """The number types a merged model can be saved in."""

    AUTO = "auto"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


def merge(
    adapter: Path = typer.Argument(help="Adapter: a folder as PEFT writes it, or a file of any readable format."),
    out: Path = typer.Option(..., "--out", "-o", help="Folder for the merged model; appears when it is complete."),
    base: str = typer.Option(None, "--base", "-b", help="Path or hub name. Default: the one that the adapter records."),
    dtype: DType = typer.Option(DType.AUTO, help="Number type of the merged model; auto keeps the base's."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace what is at --out."),
    stream: bool = typer.Option(False, "--stream", help="From file to file, one tensor in memory at a time."),
    dequantize: bool = typer.Option(False, "--dequantize", help="Quantized layers become plain ones, merged in float."),
    quantization: str = typer.Option(
        None, "--quantization", help="Quantize the base on loading, as in training (nf4, ...): the adapter fits that."
    ),
    strength: float = typer.Option(1.0, "--strength", "-t", help="0 the base, 0.5 half of every angle, 1 the adapter."),
    kind: StrengthKind = typer.Option(
        None, "--strength-kind", help="What lies between. Default: as the file's own tool does, or geodesic."
    ),
) -> None:
    """Merge an adapter into its base model and save an ordinary model, with its tokenizer.

    Example: orthotune merge runs/demo/adapter --out merged
    """
    if stream and dtype is not DType.AUTO:
        raise typer.BadParameter("--stream keeps the number types of the files; leave --dtype out")
    if stream and (dequantize or quantization):
        raise typer.BadParameter("--stream merges plain files only; leave --dequantize and --quantization out")
    from orthotune.operations.merge import merge as merged

    def tell(number: int, count: int, name: str) -> None:
        typer.echo(f"shard {number} of {count}  {name}", err=True)

    merged(
        adapter, out, base=base, dtype=dtype.value, stream=stream, overwrite=overwrite, dequantize=dequantize,
        quantization=quantization, strength=strength, kind=cast("Kind | None", kind and kind.value), progress=tell,
    )  # fmt: skip
    typer.echo(f"merged model  {out}")
