"""``orthotune merge``: an adapter and its base become an ordinary model."""

from __future__ import annotations

from enum import Enum
from pathlib import Path

import typer


class DType(str, Enum):
    """The number types a merged model can be saved in."""

    AUTO = "auto"
    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"


def merge(
    adapter: Path = typer.Argument(help="Folder with adapter_config.json and adapter_model.safetensors."),
    out: Path = typer.Option(..., "--out", "-o", help="Folder for the merged model; appears when it is complete."),
    base: str = typer.Option(None, "--base", "-b", help="Path or hub name. Default: the one that the adapter records."),
    dtype: DType = typer.Option(DType.AUTO, help="Number type of the merged model; auto keeps the base's."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace what is at --out."),
) -> None:
    """Merge an adapter into its base model and save an ordinary model, with its tokenizer.

    Example: orthotune merge runs/demo/adapter --out merged
    """
    merge_adapter(adapter, out, base=base, dtype=dtype.value, overwrite=overwrite)
    typer.echo(f"merged model  {out}")


def merge_adapter(
    adapter: Path, out: Path, *, base: str | None = None, dtype: str = "auto", overwrite: bool = False
) -> Path:
    """Merge ``adapter`` into ``base`` and save the model to ``out``, which appears when it is complete.

    Raises:
        AdapterFileError: the adapter is damaged, holds NaN, or was trained for another base.
        MergeError: a merged weight would hold NaN or infinity.
        OutputError: ``out`` is taken or cannot be written to.

    Example:
        >>> merge_adapter(Path("runs/demo/adapter"), Path("merged"))  # doctest: +SKIP
        PosixPath('merged')
    """
    from orthotune import PeftModel
    from orthotune.errors import ConfigError
    from orthotune.formats.roster import read_adapter
    from orthotune_cli.base_model import load_base
    from orthotune_cli.place import new_folder

    # Read once on its own: a damaged file is told before a large model is loaded.
    state = read_adapter(adapter)
    base = base or state.config.get("base_model_name_or_path")
    if not base:
        raise ConfigError(f"{adapter} does not record its base model", do="Name it with --base")
    # The place first: to find it closed after loading a large model would be a waste.
    with new_folder(out, overwrite=overwrite) as folder:
        loaded = load_base(base, dtype)
        tuned = PeftModel.from_pretrained(loaded.model, adapter)
        loaded.save(tuned.merge_and_unload(safe_merge=True), folder)
    return out
