"""``orthotune merge``: an adapter and its base become an ordinary model."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

import typer


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
    if stream:
        if dtype is not DType.AUTO:
            raise typer.BadParameter("--stream keeps the number types of the files; leave --dtype out")
        if dequantize or quantization:
            raise typer.BadParameter("--stream merges plain files only; leave --dequantize and --quantization out")
        stream_adapter(adapter, out, base=base, overwrite=overwrite, strength=strength, kind=kind and kind.value)
    else:
        merge_adapter(
            adapter, out, base=base, dtype=dtype.value, overwrite=overwrite, dequantize=dequantize,
            quantization=quantization, strength=strength, kind=kind and kind.value,
        )  # fmt: skip
    typer.echo(f"merged model  {out}")


def merge_adapter(
    adapter: Path,
    out: Path,
    *,
    base: str | None = None,
    dtype: str = "auto",
    overwrite: bool = False,
    dequantize: bool = False,
    quantization: str | None = None,
    strength: float = 1.0,
    kind: Any = None,
) -> Path:
    """Merge ``adapter`` into ``base`` and save the model to ``out``, which appears when it is complete.

    ``dequantize`` makes a plain model of a quantized one; ``quantization`` quantizes the base on loading, with a word
    of ``orthotune.training.quantization``. ``strength`` and ``kind`` as for
    :func:`~orthotune.tuner.strength.set_scale`.

    Raises:
        AdapterFileError: the adapter is damaged, holds NaN, or was trained for another base.
        MergeError: a merged weight would hold NaN or infinity, or a quantized layer cannot be merged into.
        RecipeError: the base cannot be quantized so.
        OutputError: ``out`` is taken or cannot be written to.

    Example:
        >>> merge_adapter(Path("runs/demo/adapter"), Path("merged"))  # doctest: +SKIP
        PosixPath('merged')
    """
    from safetensors import SafetensorError

    from orthotune.errors import AdapterFileError, MergeError
    from orthotune_cli.base_model import load_base
    from orthotune_cli.own_place import refuse_place_of_adapter
    from orthotune_cli.place import new_folder

    base = _base_of(adapter, base)
    if overwrite:
        refuse_place_of_adapter(out, adapter)
    # The place first: to find it closed after loading a large model would be a waste.
    with new_folder(out, overwrite=overwrite) as folder:
        try:
            loaded = load_base(base, dtype, quantization)
        except SafetensorError as error:
            raise AdapterFileError(
                f"the base model {base} is damaged", got=str(error), do="Copy or download it again"
            ) from error
        tuned = _with_adapter(loaded.model, adapter, strength)
        if strength != 1:
            from orthotune.tuner.strength import set_scale

            set_scale(tuned, "default", strength, kind)
        merged = tuned.merge_and_unload(safe_merge=True, dequantize=dequantize)
        try:
            loaded.save(merged, folder)
        except ValueError as error:
            if "not serializable" not in str(error):
                raise
            raise MergeError(
                f"the merged model of {base}",
                got=f"a {type(merged).__name__} whose quantization transformers cannot save",
                do="Add --dequantize to save a plain model",
            ) from error
    return out


def stream_adapter(
    adapter: Path,
    out: Path,
    *,
    base: str | None = None,
    overwrite: bool = False,
    strength: float = 1.0,
    kind: Any = None,
) -> Path:
    """As :func:`merge_adapter`, from the base's files to the merged ones without loading the model.

    Raises:
        AdapterFileError: the adapter or a file of the base is damaged, or they do not belong together.
        MergeError: a merged weight would hold NaN or infinity.
        OutputError: ``out`` is taken or cannot be written to.

    Example:
        >>> stream_adapter(Path("runs/demo/adapter"), Path("merged"), base="models/llama")  # doctest: +SKIP
        PosixPath('merged')
    """
    from orthotune.merging.stream import merge_checkpoint
    from orthotune.worlds import text
    from orthotune_cli.base_model import WORLD
    from orthotune_cli.own_place import refuse_place_of_adapter
    from orthotune_cli.place import new_folder

    def tell(number: int, count: int, name: str) -> None:
        typer.echo(f"shard {number} of {count}  {name}", err=True)

    base = _base_of(adapter, base)
    if overwrite:
        refuse_place_of_adapter(out, adapter)
    with new_folder(out, overwrite=overwrite) as folder:
        merge_checkpoint(adapter, text.MODEL if base == WORLD else Path(base), folder, tell, strength, kind)
    return out


def _with_adapter(model: Any, adapter: Path, strength: float = 1.0) -> Any:
    from orthotune import PeftModel, load_adapter
    from orthotune.errors import ConfigError
    from orthotune.formats.roster import read_adapter

    state = read_adapter(adapter)
    if strength != 1 and state.other:
        raise ConfigError(
            f"--strength {strength:g}", got=f"{len(state.other)} tensors that the adapter holds whole, which have none",
            needed="an adapter of rotations alone",
        )  # fmt: skip
    if state.config.get("peft_type") in ("OFT", "ORTHOTUNE"):
        return PeftModel.from_pretrained(model, adapter)
    tuned, _ = load_adapter(model, adapter)
    if not isinstance(tuned, PeftModel):
        raise ConfigError(
            f"merging {adapter} ({state.format}) into a {type(model).__name__}", needed="an adapter in PEFT's layout",
            do="Merge it from file to file: orthotune export ADAPTER OUT --base BASE --to dense",
        )  # fmt: skip
    return tuned


def _base_of(adapter: Path, base: str | None) -> str:
    from orthotune.errors import ConfigError
    from orthotune.formats.roster import read_adapter
    from orthotune.worlds.installed import current

    # Read once on its own: a damaged file is told before a large model is loaded.
    recorded = read_adapter(adapter).config.get("base_model_name_or_path")
    if base:
        return base
    if not recorded:
        raise ConfigError(f"{adapter} does not record its base model", do="Name it with --base")
    return current(recorded)
