"""``orthotune convert``: an adapter file becomes one that another tool loads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from orthotune_cli.reading import BOFT_CONV, COFT, EPS, PROJECT, SERIES, said

#: What --to takes, here once more so that help need not load the table; tests compare the two.
TARGETS = (
    "comfyui, lycoris, kohya-oft, kohya-oft-v2, kohya-boft, onetrainer, peft, peft-0.16, peft-0.14, peft-0.8, "
    "peft-boft, orthotune; or diff."
)

if TYPE_CHECKING:
    from orthotune.formats.adapter_state import AdapterState
    from orthotune.formats.base_weights import BaseWeights
    from orthotune.formats.convert import Plan


def convert(
    adapter: Path = typer.Argument(help="Adapter: a folder as PEFT writes it, or one file."),
    out: Path = typer.Argument(help="What is written: a file, or a folder for the formats of PEFT and orthotune."),
    to: str = typer.Option(..., "--to", help=TARGETS),
    base: Path = typer.Option(None, "--base", "-b", help="Base model on this machine, where names or shapes need it."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what would be done, and write nothing."),
    approximate: bool = typer.Option(False, "--approximate", help="Allow what is nearly the same; prints the error."),
    linear: bool = typer.Option(False, "--linear", help="No layer of the adapter is a convolution."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace what is at OUT."),
    series: str = SERIES,
    coft: bool = COFT,
    eps: float = EPS,
    project: str = PROJECT,
    boft_conv: str = BOFT_CONV,
) -> None:
    """Write an adapter for the tool that is to load it: without loss, or not at all unless --approximate is given.

    Example: orthotune convert runs/demo/adapter adapter.safetensors --to kohya-oft-v2 --approximate
    """
    for line in convert_adapter(
        adapter, out, to, base=base, dry_run=dry_run, approximate=approximate, linear=linear, overwrite=overwrite,
        options=said(series, coft, eps, project, boft_conv),
    ):  # fmt: skip
        typer.echo(line)


def convert_adapter(
    adapter: Path,
    out: Path,
    to: str,
    *,
    base: Path | None = None,
    dry_run: bool = False,
    approximate: bool = False,
    linear: bool = False,
    overwrite: bool = False,
    options: dict[str, Any] | None = None,
) -> list[str]:
    """Convert ``adapter`` and return what is to be told about it.

    Args:
        options: what the file does not say about itself, fields of :class:`orthotune.formats.ReadOptions`.

    Raises:
        AdapterFileError: the adapter or the base is damaged, or they do not belong together.
        UnsupportedLayerError: a layer cannot be written for that tool.
        OutputError: ``out`` is taken or cannot be written to.

    Example:
        >>> convert_adapter(Path("oft.safetensors"), Path("comfy.safetensors"), "comfyui")  # doctest: +SKIP
        ['layers        166', 'from          kohya-oft', 'to            comfyui (ComfyUI), lossless', ...]
    """
    from orthotune.formats.base_weights import open_base
    from orthotune.formats.conversion_table import DIFF, TARGETS
    from orthotune.formats.convert import convert as made_ready
    from orthotune.formats.convert import plan
    from orthotune.formats.read_options import ReadOptions
    from orthotune.formats.roster import read_adapter
    from orthotune_cli.own_place import refuse_place_of_adapter

    if overwrite:
        refuse_place_of_adapter(out, adapter)
    state = read_adapter(adapter, ReadOptions(**(options or {})))
    weights = open_base(base) if base is not None and to != DIFF else None
    shapes = {}
    if weights is not None:
        places = weights.of_layers([*state.layers, *state.transforms])
        shapes = {name: weights.shapes[place] for name, place in places.items()}
    folder = to in TARGETS and TARGETS[to].folder
    lines = [f"layers        {len(state.layers) + len(state.transforms)}", f"from          {state.format}"]
    lines += [f"note          {warning}" for warning in _notes(state, folder)]
    if to == DIFF:
        return lines + _diff(adapter, out, base, options or {}, dry_run, overwrite)
    planned = plan(state, to, shapes, linear=linear)
    lines.append(f"to            {to} ({TARGETS[to].tool}), {planned.verdict}")
    lines += [f"note          {note}" for note in planned.notes]
    if dry_run:
        return lines + _why(planned)
    converted, errors = made_ready(state, to, shapes, approximate=approximate, linear=linear)
    if errors:
        name = max(errors, key=lambda layer: errors[layer])
        lines.append(f"error         {errors[name]:.2e} at most (relative change of a weight), in {name}")
    _write(converted, out, to, weights, overwrite)
    return [*lines, f"written       {out}"]


def _notes(state: AdapterState, folder: bool) -> list[str]:
    found = list(state.warnings)
    if state.other and not (folder and "peft_type" in state.config):
        names = ", ".join(list(state.other)[:3])
        found.append(f"{len(state.other)} tensors beside the rotations are left out: {names}")
    return found


def _why(planned: Plan) -> list[str]:
    lines = [f"because       {reason}: {len(names)} layers" for reason, names in planned.reasons.items()]
    lines += [f"needs --base  {reason}: {len(names)} layers" for reason, names in planned.needs_base.items()]
    return [*lines, "Nothing was written."]


def _diff(
    adapter: Path, out: Path, base: Path | None, options: dict[str, Any], dry_run: bool, overwrite: bool
) -> list[str]:
    from orthotune.errors import ConfigError
    from orthotune_cli.export import export_adapter

    if base is None:
        raise ConfigError("--to diff", needed="the weights that change", do="Name the base with --base")
    lines = ["to            diff, exact for this base alone, and no orthogonal adapter any more"]
    if dry_run:
        return [*lines, "Nothing was written."]
    export_adapter(adapter, out, base, "diff", options=options, overwrite=overwrite, say=lines.append)
    return lines


def _write(state: AdapterState, out: Path, to: str, weights: BaseWeights | None, overwrite: bool) -> None:
    from orthotune.files.output import new_folder
    from orthotune.formats.conversion_table import TARGETS
    from orthotune.formats.writers import write_adapter

    modules = None if weights is None else weights.modules
    if TARGETS[to].folder:
        with new_folder(out, overwrite=overwrite, named="OUT") as folder:
            write_adapter(state, folder, to, modules)
        return
    _check_file(out, overwrite)
    write_adapter(state, out, to, modules)


def _check_file(out: Path, overwrite: bool) -> None:
    from orthotune.errors import OutputError

    if out.is_dir():
        raise OutputError(f"OUT {out}", got="a folder", needed="the name of a file, as adapter.safetensors")
    if out.suffix != ".safetensors":
        raise OutputError(f"OUT {out}", needed="a name that ends in .safetensors, for one file is written")
    if out.exists() and not overwrite:
        raise OutputError(f"OUT {out}", got="a file", do="Add --overwrite, or name another")
