"""``export``: write an adapter of any format with the weights of its base, for tools that cannot load rotations."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from orthotune import __version__
from orthotune.errors import AdapterFileError, ConfigError, OutputError, nearest
from orthotune.files.installed_worlds import IMAGE_WORLD, MODEL_WORDS, model_folder
from orthotune.files.journal import Journal, fingerprint
from orthotune.files.output import check_output, resumable
from orthotune.files.run_adapter import adapter_in
from orthotune.formats.read_options import ReadOptions
from orthotune.operations.adapter import Adapter, read_once
from orthotune.operations.checkpoint.diff_export import write_changes
from orthotune.operations.checkpoint.lora_export import Factors, factors, write_lora
from orthotune.operations.checkpoint.stream import DenseMerge
from orthotune.operations.fitting.report import LoadReport
from orthotune.operations.gguf_file.converter import find_converter
from orthotune.operations.gguf_file.write import KINDS, WrittenGguf, write_file, write_folder
from orthotune.operations.place import refuse_place_of_adapter
from orthotune.rotation.low_rank import check_sizes
from orthotune.rotation.strength import Kind, check_strength
from orthotune.tuner.lora_conversion import LowRankLayer

#: Arguments: description of the work, bytes done since the last call, total number of bytes or None if unknown.
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Exported:
    """What :func:`export` wrote.

    Attributes:
        out: the file or folder.
        report: the matched and unmatched layers.
        changes: with ``diff``, the number of changed weights; 0 otherwise.
        layers: with ``lora``, one entry for each layer.
        gguf: with ``gguf``, the file and who wrote it, or the command that remains to be called.
    """

    out: Path
    report: LoadReport
    changes: int = 0
    layers: list[LowRankLayer] = field(default_factory=list)
    gguf: WrittenGguf | None = None


def export(
    adapter: str | Path | Adapter,
    out: str | Path,
    base: str | Path,
    to: Literal["dense", "lora", "diff", "gguf"],
    *,
    rank: int | None = None,
    error: float | None = None,
    strict: bool = True,
    overwrite: bool = False,
    strength: float = 1.0,
    kind: Kind | None = None,
    gguf_type: Literal["f16", "bf16", "q8_0"] | None = None,
    converter: str | Path | None = None,
    on_report: Callable[[LoadReport], None] | None = None,
    on_layer: Callable[[LowRankLayer], None] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Exported:
    """Export an adapter on its base as a merged model, a LoRA, the dense change of every weight, or a GGUF file.

    ``dense`` writes merged files with about one tensor in memory at a time; after an interruption, the same call
    continues. ``lora`` approximates each change by a low rank with the singular value decomposition. ``diff`` is exact
    for this base only. ``gguf`` writes the merged language model as one file for llama.cpp, with a Modelfile for
    Ollama, into a folder, or the file alone where ``out`` ends in ``.gguf``: through the ``gguf`` library where that is
    enough for the model, otherwise with llama.cpp's converter; where there is none, the merged folder is written, and
    the result has the command that remains.

    Args:
        adapter: a folder or file of any readable format, or an adapter that is already read.
        out: a folder, or a ``.safetensors`` file with ``diff`` and where the base is one file; with ``gguf`` a folder
            or a ``.gguf`` file. It appears when it is complete.
        base: a model folder, a diffusers folder, or one ``.safetensors`` file.
        to: the kind of export.
        rank: with ``lora``: rank of each layer, or the largest rank if ``error`` is given.
        error: with ``lora``: largest relative error of each layer, in the Frobenius norm.
        strict: raise an error for layers of the adapter that the base does not have, instead of reporting them.
        overwrite: replace what is at ``out``.
        strength: strength of the adapter: 0 is the base, 1 the adapter as trained.
        kind: interpolation for other strengths; None for that of the tool that wrote the file, or ``geodesic``.
        gguf_type: with ``gguf``: type of the weights; None for ``f16``.
        converter: with ``gguf``: ``convert_hf_to_gguf.py`` of llama.cpp or the folder with it, which is then called;
            None for the library, or the converter on the search path for what the library does not write.
        on_report: called with the report of matched layers, before anything is written.
        on_layer: with ``lora``, called after each layer.
        progress: see :data:`Progress`.
        options: facts that the file does not record, see :class:`~orthotune.formats.read_options.ReadOptions`.

    Returns:
        The written file or folder, with the report.

    Raises:
        AdapterFileError: the adapter or a file of the base is damaged, or they do not belong together.
        ConfigError: an argument is missing, or not allowed with this ``to``.
        MergeError: a weight would hold NaN or infinity, or the adapter holds more than rotations.
        UnsupportedLayerError: LoRA cannot represent a layer.
        OutputError: ``out`` exists already or cannot be written to.

    Example:
        >>> import tempfile, torch
        >>> from safetensors.torch import load_file, save_file
        >>> folder = Path(tempfile.mkdtemp())
        >>> save_file({"blk.lin.weight": torch.eye(2)}, folder / "base.safetensors")
        >>> save_file({"lora_unet_blk_lin.oft_R.weight": torch.full((1, 1), 0.1)}, folder / "adapter.safetensors")
        >>> adapter, base = folder / "adapter.safetensors", folder / "base.safetensors"
        >>> done = export(adapter, folder / "diff.safetensors", base, "diff")
        >>> load_file(done.out)["lora_unet_blk_lin.diff"]
        tensor([[-0.0199, -0.1980],
                [ 0.1980, -0.0199]])
    """
    out, base = Path(out), Path(model_folder(str(base)))
    _check(to, rank, error, options)
    check_strength(strength, kind)
    script = _converter(to, gguf_type, converter)
    gguf_file = to == "gguf" and out.suffix == ".gguf"
    file = to == "diff" or base.is_file() or gguf_file
    if file and not gguf_file and out.suffix != ".safetensors":
        raise OutputError(f"OUT {out}", needed="a file name that ends in .safetensors")
    path = adapter.path if isinstance(adapter, Adapter) else adapter_in(adapter)
    if overwrite:
        refuse_place_of_adapter(out, path)
    check_output(out, "OUT", file=file, overwrite=overwrite)
    if not base.exists():
        close = nearest(str(base), [*MODEL_WORDS, IMAGE_WORLD], count=1)
        raise AdapterFileError(
            f"there is no base model at {base}",
            do=f"Did you mean {close[0]}?" if close else "Check the path; a model on the hub must be downloaded first",
        )
    opened = adapter if isinstance(adapter, Adapter) else read_once(path, **options)
    # The output is opened first, so that an unwritable folder is reported before an hour of work.
    with resumable(out, file=file, overwrite=overwrite, resume=to == "dense") as folder:
        merge = DenseMerge(opened, base, strict=strict, strength=strength, kind=kind)
        if on_report is not None:
            on_report(merge.report)
        target, advance = folder / out.name if file else folder, progress or _silent
        if to == "dense":
            _dense(merge, path, folder, out, [json.dumps(options, sort_keys=True), str(strict)], advance)
            return Exported(out, merge.report)
        if to == "gguf":
            advance("merging", 0, merge.size)
            write: Any = write_file if gguf_file else write_folder
            made = write(
                merge, folder, out, gguf_type or "f16", script, lambda size: advance("merging", size, merge.size)
            )
            return Exported(out, merge.report, gguf=made)
        if to == "diff":
            advance("changes", 0, None)
            changed = write_changes(merge, target, lambda size: advance("changes", size, None))
            return Exported(out, merge.report, changed)
        advance("decomposing", 0, None)
        layers = factors(merge, rank, error, lambda layer: _of_lora(layer, on_layer, advance))
        write_lora(merge, layers, target, task_type=opened.state.config.get("task_type"))
        return Exported(out, merge.report, layers=[_low_rank(layer) for layer in layers])


def _silent(*_: Any) -> None:
    pass


def _check(to: str, rank: int | None, error: float | None, options: dict[str, Any]) -> None:
    if to not in ("dense", "lora", "diff", "gguf"):
        raise ConfigError(f"--to {to}", needed="dense, lora, diff or gguf")
    if (to == "lora") != (rank is not None or error is not None):
        raise ConfigError(f"--to {to}", needed="--rank or --error with lora, and only with lora")
    if to == "lora":
        check_sizes(rank, error)
    ReadOptions(**options)


def _converter(to: str, gguf_type: str | None, given: str | Path | None) -> Path | None:
    if to != "gguf" and (gguf_type is not None or given is not None):
        raise ConfigError(f"--to {to}", needed="--gguf-type and --converter only with gguf")
    if gguf_type not in (None, *KINDS):
        raise ConfigError(f"--gguf-type {gguf_type}", needed=" or ".join(KINDS))
    return None if given is None else find_converter(given)


def _dense(merge: DenseMerge, adapter: Path, folder: Path, out: Path, answers: list[str], tell: Progress) -> None:
    own = [path for path in adapter.iterdir() if path.is_file()] if adapter.is_dir() else [adapter]
    weights = [shard.entries[0].path for part in merge.base.parts for shard in part.checkpoint.shards if shard.entries]
    small = [path for path in own if path.suffix in (".json", ".safetensors", ".bin") or path == adapter]
    facts = [__version__, str(merge.base.path.absolute()), *answers, *merge.strength]
    journal = Journal(folder, fingerprint(small, weights, facts))
    tell("merging", 0, merge.size)
    if merge.base.single_file:
        # The only file gets the name of the output.
        merge.base.parts[0].checkpoint.shards[0].name = out.name
    now = "merging"

    def started(number: int, count: int, name: str) -> None:
        nonlocal now
        now = f"{number} of {count}  {name}"
        tell(now, 0, merge.size)

    merge.write(folder, started, lambda size: tell(now, size, merge.size), journal)
    journal.close()


def _low_rank(layer: Factors) -> LowRankLayer:
    return LowRankLayer(layer.change.name, layer.rank, layer.error)


def _of_lora(layer: Factors, on_layer: Callable[[LowRankLayer], None] | None, tell: Progress) -> None:
    tell("decomposing", layer.up.numel() * 4, None)
    if on_layer is not None:
        on_layer(_low_rank(layer))
