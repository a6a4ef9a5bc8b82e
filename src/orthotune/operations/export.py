"""``export``: an adapter of any format, with the weights of its base, for tools that know no rotations."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from orthotune import __version__
from orthotune.errors import AdapterFileError, ConfigError, OutputError
from orthotune.files.journal import Journal, fingerprint
from orthotune.files.output import resumable
from orthotune.formats.read_options import CHOICES
from orthotune.operations.adapter import Adapter, read_once
from orthotune.operations.checkpoint.diff_export import write_changes
from orthotune.operations.checkpoint.lora_export import Factors, factors, write_lora
from orthotune.operations.checkpoint.stream import DenseMerge
from orthotune.operations.fitting.report import LoadReport
from orthotune.operations.place import refuse_place_of_adapter
from orthotune.rotation.strength import Kind

#: What is being done, the bytes that were done since the last call, and how many there are; None if that is not known.
Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class LowRankLayer:
    """One layer of an exported LoRA: its rank, and the error of its change, relative to the norm of the exact one."""

    layer: str
    rank: int
    error: float


@dataclass(frozen=True)
class Exported:
    """What :func:`export` wrote.

    Attributes:
        out: the file or folder.
        report: which layers of the adapter matched the base.
        changes: with ``diff``, how many weights change; 0 otherwise.
        layers: with ``lora``, one entry for each layer.
    """

    out: Path
    report: LoadReport
    changes: int = 0
    layers: list[LowRankLayer] = field(default_factory=list)


def export(
    adapter: str | Path | Adapter,
    out: str | Path,
    base: str | Path,
    to: Literal["dense", "lora", "diff"],
    *,
    rank: int | None = None,
    error: float | None = None,
    strict: bool = True,
    overwrite: bool = False,
    strength: float = 1.0,
    kind: Kind | None = None,
    on_report: Callable[[LoadReport], None] | None = None,
    on_layer: Callable[[LowRankLayer], None] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Exported:
    """Export an adapter on its base as a merged model, as a LoRA, or as the dense change of every weight.

    ``dense`` streams the base's files to merged ones, about one tensor in memory at a time; interrupted, the same call
    goes on where it stopped. ``lora`` cuts each change to a low rank by the singular value decomposition. ``diff`` is
    exact for this base alone.

    Args:
        adapter: of any readable format: a folder or a file; or one that was read.
        out: a folder, or a ``.safetensors`` file with ``diff`` and where the base is one file. It appears when it is
            complete.
        base: a model folder, a diffusers folder, or one ``.safetensors`` file.
        to: what is written.
        rank: with ``lora``: rank of every layer, or the most with ``error``.
        error: with ``lora``: relative error of every layer at most, in the Frobenius norm.
        strict: an error for layers of the adapter that the base has not; otherwise they are in the report.
        overwrite: replace what is at ``out``.
        strength: how strongly the adapter acts: 0 is the base, 1 the adapter as it was trained.
        kind: what lies between; None for what the file's own tool does, ``geodesic`` where that knows no strength.
        on_report: called with what matched, before anything is written.
        on_layer: with ``lora``, called after each layer.
        progress: called with what is being done, the bytes done since the last call, and their number if it is known.
        options: what the file does not say about itself, see :class:`~orthotune.formats.read_options.ReadOptions`.

    Returns:
        What was written.

    Raises:
        AdapterFileError: the adapter or a file of the base is damaged, or they do not belong together.
        ConfigError: an argument has no meaning, or is missing.
        MergeError: a weight would hold NaN or infinity, or the adapter holds more than rotations.
        UnsupportedLayerError: a layer that LoRA has no form for.
        OutputError: ``out`` is taken or cannot be written to.

    Example:
        >>> import tempfile, torch
        >>> from safetensors.torch import load_file, save_file
        >>> home = Path(tempfile.mkdtemp())
        >>> save_file({"blk.lin.weight": torch.eye(2)}, home / "base.safetensors")
        >>> save_file({"lora_unet_blk_lin.oft_R.weight": torch.full((1, 1), 0.1)}, home / "adapter.safetensors")
        >>> done = export(home / "adapter.safetensors", home / "diff.safetensors", home / "base.safetensors", "diff")
        >>> load_file(done.out)["lora_unet_blk_lin.diff"]
        tensor([[-0.0199, -0.1980],
                [ 0.1980, -0.0199]])
    """
    out, base = Path(out), Path(base)
    _check(to, rank, error, options, base)
    file = to == "diff" or base.is_file()
    if file and out.suffix != ".safetensors":
        raise OutputError(f"OUT {out}", needed="a name that ends in .safetensors, for one file is written")
    path = adapter.path if isinstance(adapter, Adapter) else Path(adapter)
    if overwrite:
        refuse_place_of_adapter(out, path)
    opened = adapter if isinstance(adapter, Adapter) else read_once(path, **options)
    # The place before the work: to find it closed after an hour would be a waste.
    with resumable(out, file=file, overwrite=overwrite, resume=to == "dense") as folder:
        merge = DenseMerge(opened, base, strict=strict, strength=strength, kind=kind)
        if on_report is not None:
            on_report(merge.report)
        place, tell = folder / out.name if file else folder, progress or _silent
        if to == "dense":
            _dense(merge, path, folder, out, [json.dumps(options, sort_keys=True), str(strict)], tell)
            return Exported(out, merge.report)
        if to == "diff":
            tell("changes", 0, None)
            return Exported(out, merge.report, write_changes(merge, place, lambda size: tell("changes", size, None)))
        tell("decomposing", 0, None)
        layers = factors(merge, rank, error, lambda layer: _of_lora(layer, on_layer, tell))
        write_lora(merge, layers, place, task_type=opened.state.config.get("task_type"))
        return Exported(out, merge.report, layers=[_low_rank(layer) for layer in layers])


def _silent(*_: Any) -> None:
    pass


def _check(to: str, rank: int | None, error: float | None, options: dict[str, Any], base: Path) -> None:
    if to not in ("dense", "lora", "diff"):
        raise ConfigError(f"--to {to}", needed="dense, lora or diff")
    if (to == "lora") != (rank is not None or error is not None):
        raise ConfigError(f"--to {to}", needed="--rank or --error with lora, and with it alone")
    for name, allowed in CHOICES.items():
        if options.get(name) not in (None, *allowed):
            raise ConfigError(f"--{name.replace('_', '-')} {options[name]}", needed=" or ".join(allowed))
    if not base.exists():
        raise AdapterFileError(
            f"There is no base at {base}", do="Check the path; a model on the hub must be downloaded first"
        )


def _dense(merge: DenseMerge, adapter: Path, folder: Path, out: Path, answers: list[str], tell: Progress) -> None:
    own = [path for path in adapter.iterdir() if path.is_file()] if adapter.is_dir() else [adapter]
    weights = [shard.entries[0].path for part in merge.base.parts for shard in part.checkpoint.shards if shard.entries]
    small = [path for path in own if path.suffix in (".json", ".safetensors", ".bin") or path == adapter]
    words = [__version__, str(merge.base.path.absolute()), *answers, *merge.said]
    journal = Journal(folder, fingerprint(small, weights, words))
    tell("merging", 0, merge.size)
    if merge.base.single_file:
        # A lone file takes the name that was asked for.
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
