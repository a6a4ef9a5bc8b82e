"""``merge``: merge an adapter into its base and save an ordinary model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from peft import PeftModel
from safetensors import SafetensorError

from orthotune.errors import AdapterFileError, ConfigError, MergeError
from orthotune.files.installed_worlds import current
from orthotune.files.output import check_output, new_folder
from orthotune.formats.read_options import ReadOptions
from orthotune.operations.adapter import Adapter, read_once
from orthotune.operations.base_model import load_base, place_of
from orthotune.operations.checkpoint.stream import DenseMerge
from orthotune.operations.headed_base import headed_base
from orthotune.operations.load import apply_adapter, with_file_config
from orthotune.operations.lora_file import lora_at
from orthotune.operations.other_methods import load_any, other_method, recorded_base, refuse_for_other
from orthotune.operations.place import refuse_place_of_adapter
from orthotune.quantized.loading_options import check_quantization
from orthotune.rotation.strength import Kind, check_strength
from orthotune.tuner.strength import set_scale

#: dtypes in which a merged model can be saved; ``auto`` is that of the base.
DTYPES = ("auto", "float32", "float16", "bfloat16")


def merge(
    adapter: str | Path,
    out: str | Path,
    *,
    base: str | Path | None = None,
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto",
    stream: bool = False,
    overwrite: bool = False,
    dequantize: bool = False,
    quantization: str | None = None,
    strength: float = 1.0,
    kind: Kind | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    **options: Any,
) -> Path:
    """Merge an adapter into its base and save an ordinary model, with its tokenizer.

    Args:
        adapter: a folder or file of any readable format, a run directory, or a LoRA as PEFT writes it.
        out: folder of the merged model; it appears when it is complete.
        base: path or hub name of the base; the one that the adapter records if None.
        dtype: dtype of the merged model; ``auto`` keeps that of the base.
        stream: merge from file to file, with one tensor in memory at a time, instead of loading the model.
        overwrite: replace what is at ``out``.
        dequantize: merge quantized layers in float and save them unquantized.
        quantization: quantize the base on loading, with a name from :mod:`orthotune.quantized.loading_options`.
        strength: strength of the adapter: 0 is the base, 1 the adapter as trained.
        kind: interpolation for other strengths; None for that of the tool that wrote the file, or ``geodesic``.
        progress: with ``stream``, called before each file with its number from 1, the number of files and its name.
        options: facts that the file does not record, see :class:`~orthotune.formats.read_options.ReadOptions`.

    Returns:
        ``out``.

    Raises:
        AdapterFileError: the adapter or the base is damaged, or they do not belong together.
        ConfigError: no base is known, or two arguments contradict each other.
        MergeError: a merged weight would hold NaN or infinity, or a quantized layer cannot be merged into.
        RecipeError: the base cannot be quantized in this way.
        OutputError: ``out`` exists already or cannot be written to.

    Example:
        >>> import tempfile, torch
        >>> from safetensors.torch import load_file, save_file
        >>> folder = Path(tempfile.mkdtemp())
        >>> save_file({"blk.lin.weight": torch.eye(2)}, folder / "base.safetensors")
        >>> save_file({"lora_unet_blk_lin.oft_R.weight": torch.full((1, 1), 0.1)}, folder / "adapter.safetensors")
        >>> base = folder / "base.safetensors"
        >>> out = merge(folder / "adapter.safetensors", folder / "merged", base=base, stream=True)
        >>> load_file(out / "base.safetensors")["blk.lin.weight"]  # by 0.2 radians
        tensor([[ 0.9801, -0.1980],
                [ 0.1980,  0.9801]])
    """
    check_strength(strength, kind)
    ReadOptions(**options)
    if dtype not in DTYPES:
        raise ConfigError(f"--dtype {dtype}", needed=" or ".join(DTYPES))
    if quantization:
        check_quantization(quantization)
    if stream and (dtype != "auto" or dequantize or quantization):
        raise ConfigError(
            "stream=True with dtype, dequantize or quantization",
            needed="the dtypes of the base's files",
            do="Omit these arguments, or merge without stream",
        )
    out = Path(out)
    if overwrite:
        refuse_place_of_adapter(out, Path(adapter))
    check_output(out, "--out", file=False, overwrite=overwrite)
    opened, method = None, other_method(adapter)
    if method is None:
        opened = read_once(adapter, **options)  # before a large model is loaded
        if strength != 1 and opened.state.other:
            raise ConfigError(
                f"--strength {strength:g}", got=f"{len(opened.state.other)} tensors that the adapter replaces",
                needed="an adapter of rotations only",
            )  # fmt: skip
        recorded = opened.state.config.get("base_model_name_or_path")
    else:
        refuse_for_other(method, stream=stream, dequantize=dequantize, strength=strength != 1)
        recorded = recorded_base(adapter)
    if not base and not recorded:
        raise ConfigError(f"{adapter} does not record its base model", do="Name the base with --base")
    base = str(base) if base else current(str(recorded))
    # The output is opened first, so that an unwritable folder is reported before a large model is loaded.
    with new_folder(out, overwrite=overwrite) as folder:
        if opened is None:
            _other_in_memory(adapter, base, folder, dtype, quantization)
        elif stream:
            DenseMerge(opened, place_of(base), strength=strength, kind=kind).write(folder, progress)
        else:
            _in_memory(opened, base, folder, dtype, dequantize, quantization, strength, kind)
    return out


def _in_memory(
    adapter: Adapter,
    base: str,
    folder: Path,
    dtype: str,
    dequantize: bool,
    quantization: str | None,
    strength: float,
    kind: Kind | None,
) -> None:
    try:
        loaded = load_base(base, dtype, quantization, headed_base(adapter.path))
    except SafetensorError as error:
        raise AdapterFileError(
            f"the base model {base} is damaged", got=str(error), do="Copy or download it again"
        ) from error
    tuned = _with_adapter(loaded.model, adapter)
    if strength != 1:
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
            do="Add --dequantize to save an unquantized model",
        ) from error


def _other_in_memory(adapter: str | Path, base: str, folder: Path, dtype: str, quantization: str | None) -> None:
    loaded, lora = load_base(base, dtype, quantization, headed_base(adapter)), lora_at(adapter)
    if lora is not None and lora.format == "diffusers-lora":
        if loaded.pipeline is None:
            raise ConfigError(f"--base {base}", got="one model", needed="the pipeline that the LoRA was trained on")
        pipe = loaded.pipeline[0]
        pipe.load_lora_weights(str(lora.path.parent), weight_name=lora.path.name, adapter_name="merged")
        pipe.fuse_lora(safe_fusing=True)
        pipe.unload_lora_weights()
        pipe.save_pretrained(folder)
        return
    loaded.save(load_any(loaded.model, adapter).merge_and_unload(safe_merge=True), folder)


def _with_adapter(model: Any, adapter: Adapter) -> Any:
    state = adapter.state
    if state.config.get("peft_type") in ("OFT", "ORTHOTUNE"):
        return with_file_config(model, adapter)
    tuned, _ = apply_adapter(model, adapter)
    if not isinstance(tuned, PeftModel):
        raise ConfigError(
            f"merging {adapter.path} ({state.format}) into a {type(model).__name__}",
            needed="an adapter in PEFT's layout",
            do="Merge from file to file: orthotune export ADAPTER OUT --base BASE --to dense",
        )
    return tuned
