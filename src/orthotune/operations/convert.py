"""``convert``: write an adapter file in the format of another tool."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orthotune.errors import ConfigError, OutputError, UnsupportedLayerError
from orthotune.files.installed_worlds import current, model_folder, world_of
from orthotune.files.names import shortened
from orthotune.files.output import check_output, new_folder
from orthotune.formats import convert as conversion
from orthotune.formats.adapter_state import AdapterState
from orthotune.formats.base_weights import BaseWeights, open_base
from orthotune.formats.fused import split_fused
from orthotune.formats.kinds import DIFF
from orthotune.formats.names.spelling import Spelling, spelled
from orthotune.formats.read_options import ReadOptions
from orthotune.formats.registry import targets
from orthotune.formats.writers import write_adapter
from orthotune.operations.adapter import Adapter, read_once
from orthotune.operations.lora_file import LoraFile, check_target, lora_at, write_lora_names
from orthotune.operations.place import refuse_place_of_adapter


@dataclass(frozen=True)
class Converted:
    """The result of :func:`convert`.

    Attributes:
        source: id of the format of the adapter.
        target: id of the target format.
        layers: number of layers of the adapter.
        notes: warnings about the file, and skipped tensors.
        plan: verdict, reasons and the layers that need the base; None for ``diff``.
        errors: layer -> largest relative change of its weight, for layers whose conversion is approximate.
        written: the file or folder; None for a dry run.
        exported: for ``diff``, the result of the export.
        spelling: the names in the written file, and which of them the tool knows; None for a folder of PEFT.
    """

    source: str
    target: str
    layers: int
    notes: tuple[str, ...] = ()
    plan: conversion.Plan | None = None
    errors: dict[str, float] = field(default_factory=dict)
    written: Path | None = None
    exported: Any = None
    spelling: Spelling | None = None


def convert(
    adapter: str | Path,
    out: str | Path,
    to: str,
    *,
    base: str | Path | None = None,
    dry_run: bool = False,
    approximate: bool = False,
    linear: bool = False,
    overwrite: bool = False,
    progress: Any = None,
    **options: Any,
) -> Converted:
    """Write an adapter in the format of another tool; only lossless conversions, unless ``approximate`` is set.

    Args:
        adapter: a folder as PEFT writes it, or one file of any readable format. It is read once.
        out: a ``.safetensors`` file, or a folder for the formats of PEFT and orthotune; appears when it is complete.
        to: a format of ``orthotune.formats.registry.targets()``, or ``diff`` for the dense change of each weight.
        base: local base model; some formats need the names or shapes of its weights.
        dry_run: return the plan and write nothing.
        approximate: allow conversions with an error; the result has the error of each layer.
        linear: states that no layer of the adapter is a convolution.
        overwrite: replace what is at ``out``.
        progress: for ``diff``, see :func:`~orthotune.operations.export.export`.
        options: facts that the file does not record, see :class:`~orthotune.formats.read_options.ReadOptions`.

    Returns:
        The plan, the errors and the written file.

    Raises:
        AdapterFileError: the adapter or the base is damaged, or they do not belong together.
        ConfigError: ``to`` is not a target, or is ``diff`` without a base.
        UnsupportedLayerError: the target format cannot hold a layer.
        OutputError: ``out`` exists already or cannot be written to.

    Source:
        The formats are described in docs/reference/formats.md, with the programs that write them.

    Example:
        >>> import tempfile, torch
        >>> from safetensors.torch import load_file, save_file
        >>> folder = Path(tempfile.mkdtemp())
        >>> save_file({"lora_unet_blk_lin.oft_R.weight": torch.ones(2, 3)}, folder / "style.safetensors")
        >>> done = convert(folder / "style.safetensors", folder / "other.safetensors", "onetrainer", linear=True)
        >>> done.source, done.plan.verdict, list(load_file(done.written))
        ('onetrainer', 'lossless', ['lora_unet_blk_lin.oft_R.weight'])
    """
    out = Path(out)
    conversion.check_target(to)
    ReadOptions(**options)
    if to == DIFF and base is None:
        raise ConfigError("--to diff", needed="the weights of the base", do="Name the base with --base")
    if overwrite:
        refuse_place_of_adapter(out, Path(adapter))
    if not dry_run:
        _check_output(out, to, overwrite)
    if (lora := lora_at(adapter)) is not None:
        return _lora(lora, out, to, base, dry_run, overwrite)
    opened = read_once(adapter, **options)
    state = opened.state
    base = _base(base, state.config.get("base_model_name_or_path"), to)
    weights = open_base(base) if base is not None and to != DIFF else None
    shapes = {}
    if weights is not None:
        state = split_fused(state, weights.rows)
        names = weights.of_layers([*state.layers, *state.transforms])
        shapes = {layer: weights.shapes[name] for layer, name in names.items()}
    folder = to in targets() and targets()[to].folder
    layers, notes = len(state.layers) + len(state.transforms), _notes(state, folder)
    if to == DIFF:
        exported = _diff(opened, out, base, dry_run, overwrite, progress, options)
        return Converted(state.format, to, layers, notes, written=None if dry_run else out, exported=exported)
    planned = conversion.plan(state, to, shapes, linear=linear)
    spelling = _spelling(state, to, weights, planned)
    if dry_run:
        return Converted(state.format, to, layers, notes, planned, spelling=spelling)
    ready, errors = conversion.convert(state, to, shapes, approximate=approximate, linear=linear)
    _write(ready, out, to, weights, overwrite)
    return Converted(state.format, to, layers, notes, planned, errors, out, spelling=spelling)


def _spelling(state: AdapterState, to: str, weights: BaseWeights | None, planned: conversion.Plan) -> Spelling | None:
    """The names for a tool whose own maps of names are known; refused if it would ignore all of them."""
    if to not in targets() or targets()[to].folder or planned.verdict == "impossible":
        return None
    stems = [*state.layers, *state.transforms]
    spelling = spelled(stems, to, None if weights is None else weights.modules)
    if spelling.known == 0:
        raise UnsupportedLayerError(
            f"the names of {len(stems)} layers for {targets()[to].tool}",
            got=f"{shortened(list(spelling.names.values()))}, of which its loader knows none",
            needed="layers of a model that it loads",
            do="Train other layers, or load the adapter with orthotune, PEFT or diffusers",
        )  # fmt: skip
    return spelling


def _lora(lora: LoraFile, out: Path, to: str, base: str | Path | None, dry_run: bool, overwrite: bool) -> Converted:
    check_target(lora, to)
    place = _base(base, lora.base, to)
    weights = None if place is None else open_base(place)
    ignored: list[str] = []
    if not dry_run:
        ignored = write_lora_names(lora, out, to, weights)
    notes = tuple(f"{name} has no name that the tool knows, and is ignored there" for name in ignored)
    verdict = conversion.Plan(to, "lossless")
    return Converted(lora.format, to, len(lora.layers), notes, verdict, written=None if dry_run else out)


def _base(given: str | Path | None, recorded: object, to: str) -> str | Path | None:
    """The base of a conversion: the given one, or the pipeline on this disk that the adapter records."""
    if given is not None:
        return Path(model_folder(str(given)))
    if not isinstance(recorded, str) or to == DIFF or world_of(recorded) == "text":
        return None
    place = Path(current(recorded))
    return place if (place / "model_index.json").is_file() else None


def _notes(state: AdapterState, folder: bool) -> tuple[str, ...]:
    found = list(state.warnings)
    if state.other and not (folder and "peft_type" in state.config):
        names = ", ".join(list(state.other)[:3])
        found.append(f"{len(state.other)} tensors that are not rotations are skipped: {names}")
    return tuple(found)


def _diff(
    adapter: Adapter,
    out: Path,
    base: str | Path | None,
    dry_run: bool,
    overwrite: bool,
    progress: Any,
    options: dict[str, Any],
) -> Any:
    if dry_run:
        return None
    assert base is not None
    from orthotune.operations.export import export  # imports PEFT, which other conversions do not need

    return export(adapter, out, base, "diff", overwrite=overwrite, progress=progress, **options)


def _write(state: AdapterState, out: Path, to: str, weights: BaseWeights | None, overwrite: bool) -> None:
    modules = None if weights is None else weights.modules
    if targets()[to].folder:
        with new_folder(out, overwrite=overwrite, named="OUT") as folder:
            write_adapter(state, folder, to, modules)
        return
    write_adapter(state, out, to, modules, None if weights is None else weights.rows)


def _check_output(out: Path, to: str, overwrite: bool) -> None:
    if to in targets() and targets()[to].folder:
        check_output(out, "OUT", file=False, overwrite=overwrite)
        return
    if out.is_dir():
        raise OutputError(f"OUT {out}", got="a folder", needed="a file name such as adapter.safetensors")
    if out.suffix != ".safetensors":
        raise OutputError(f"OUT {out}", needed="a file name that ends in .safetensors")
    if out.exists() and not overwrite:
        raise OutputError(f"OUT {out}", got="an existing file", do="Add --overwrite, or choose another name")
