"""``convert``: an adapter file becomes one that another tool loads."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orthotune.errors import ConfigError, OutputError
from orthotune.files.output import new_folder
from orthotune.formats import convert as conversion
from orthotune.formats.adapter_state import AdapterState
from orthotune.formats.base_weights import BaseWeights, open_base
from orthotune.formats.kinds import DIFF
from orthotune.formats.registry import targets
from orthotune.formats.writers import write_adapter
from orthotune.operations.adapter import Adapter, read_once
from orthotune.operations.place import refuse_place_of_adapter


@dataclass(frozen=True)
class Converted:
    """What :func:`convert` did, or would do.

    Attributes:
        source: id of the format that was read.
        target: what was asked for.
        layers: how many layers the adapter has.
        notes: what must be known of the file, and what is left out.
        plan: verdict, reasons and what needs the base; None for ``diff``.
        errors: layer -> relative change of its weight at most, for layers that are not the same any more.
        written: the file or folder; None for a dry run.
        exported: for ``diff``, what was written.
    """

    source: str
    target: str
    layers: int
    notes: tuple[str, ...] = ()
    plan: conversion.Plan | None = None
    errors: dict[str, float] = field(default_factory=dict)
    written: Path | None = None
    exported: Any = None


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
    """Write an adapter for another tool: without loss, or not at all unless ``approximate`` is given.

    Args:
        adapter: a folder as PEFT writes it, or one file of any readable format. It is read once.
        out: a ``.safetensors`` file, or a folder for the formats of PEFT and orthotune; appears when it is complete.
        to: one of ``orthotune.formats.registry.targets()``, or ``diff`` for the dense change of each weight.
        base: base model on this machine, where names or shapes of its weights are needed.
        dry_run: find out what would be done, and write nothing.
        approximate: allow what is nearly the same; the errors say how nearly.
        linear: no layer of the adapter is a convolution.
        overwrite: replace what is at ``out``.
        progress: for ``diff``, see :func:`~orthotune.operations.export.export`.
        options: what the file does not say about itself, see :class:`~orthotune.formats.read_options.ReadOptions`.

    Returns:
        What was done.

    Raises:
        AdapterFileError: the adapter or the base is damaged, or they do not belong together.
        ConfigError: there is no such target, or ``diff`` without a base.
        UnsupportedLayerError: a layer cannot be written for that tool.
        OutputError: ``out`` is taken or cannot be written to.

    Source:
        The formats are described in docs/reference/formats.md, with the programs that write them.

    Example:
        >>> import tempfile, torch
        >>> from safetensors.torch import load_file, save_file
        >>> home = Path(tempfile.mkdtemp())
        >>> save_file({"lora_unet_blk_lin.oft_R.weight": torch.ones(2, 3)}, home / "style.safetensors")
        >>> done = convert(home / "style.safetensors", home / "other.safetensors", "onetrainer", linear=True)
        >>> done.source, done.plan.verdict, list(load_file(done.written))
        ('onetrainer', 'lossless', ['lora_unet_blk_lin.oft_R.weight'])
    """
    out = Path(out)
    if overwrite:
        refuse_place_of_adapter(out, Path(adapter))
    opened = read_once(adapter, **options)
    state = opened.state
    weights = open_base(base) if base is not None and to != DIFF else None
    shapes = {}
    if weights is not None:
        places = weights.of_layers([*state.layers, *state.transforms])
        shapes = {name: weights.shapes[place] for name, place in places.items()}
    folder = to in targets() and targets()[to].folder
    layers, notes = len(state.layers) + len(state.transforms), _notes(state, folder)
    if to == DIFF:
        exported = _diff(opened, out, base, dry_run, overwrite, progress, options)
        return Converted(state.format, to, layers, notes, written=None if dry_run else out, exported=exported)
    planned = conversion.plan(state, to, shapes, linear=linear)
    if dry_run:
        return Converted(state.format, to, layers, notes, planned)
    ready, errors = conversion.convert(state, to, shapes, approximate=approximate, linear=linear)
    _write(ready, out, to, weights, overwrite)
    return Converted(state.format, to, layers, notes, planned, errors, out)


def _notes(state: AdapterState, folder: bool) -> tuple[str, ...]:
    found = list(state.warnings)
    if state.other and not (folder and "peft_type" in state.config):
        names = ", ".join(list(state.other)[:3])
        found.append(f"{len(state.other)} tensors beside the rotations are left out: {names}")
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
    if base is None:
        raise ConfigError("--to diff", needed="the weights that change", do="Name the base with --base")
    if dry_run:
        return None
    from orthotune.operations.export import export  # loads PEFT, which no other conversion needs

    return export(adapter, out, base, "diff", overwrite=overwrite, progress=progress, **options)


def _write(state: AdapterState, out: Path, to: str, weights: BaseWeights | None, overwrite: bool) -> None:
    modules = None if weights is None else weights.modules
    if targets()[to].folder:
        with new_folder(out, overwrite=overwrite, named="OUT") as folder:
            write_adapter(state, folder, to, modules)
        return
    _check_file(out, overwrite)
    write_adapter(state, out, to, modules)


def _check_file(out: Path, overwrite: bool) -> None:
    if out.is_dir():
        raise OutputError(f"OUT {out}", got="a folder", needed="the name of a file, as adapter.safetensors")
    if out.suffix != ".safetensors":
        raise OutputError(f"OUT {out}", needed="a name that ends in .safetensors, for one file is written")
    if out.exists() and not overwrite:
        raise OutputError(f"OUT {out}", got="a file", do="Add --overwrite, or name another")
