"""``orthotune export``: an adapter of any format becomes a merged model, a LoRA, or dense differences."""

from __future__ import annotations

import json
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from orthotune_cli.merge import StrengthKind
from orthotune_cli.reading import BOFT_CONV, COFT, EPS, PROJECT, SERIES, said

if TYPE_CHECKING:
    from rich.progress import Progress

    from orthotune.merging.stream import DenseMerge


class Kind(str, Enum):
    """What an adapter can be exported to."""

    DENSE = "dense"
    LORA = "lora"
    DIFF = "diff"


def export(
    adapter: Path = typer.Argument(help="Adapter of any readable format: a folder or a file."),
    out: Path = typer.Argument(help="Folder, or file where the base is one file; appears when it is complete."),
    base: Path = typer.Option(..., "--base", "-b", help="Base: model folder, diffusers folder, or .safetensors file."),
    to: Kind = typer.Option(..., "--to", help="dense: merged model. lora: by SVD. diff: the change of each weight."),
    rank: int = typer.Option(None, "--rank", min=1, help="LoRA: rank of every layer, or the most with --error."),
    error: float = typer.Option(None, "--error", min=0.0, help="LoRA: relative error of every layer at most."),
    series: str = SERIES,
    coft: bool = COFT,
    eps: float = EPS,
    project: str = PROJECT,
    boft_conv: str = BOFT_CONV,
    strength: float = typer.Option(1.0, "--strength", "-t", help="0 the base, 0.5 half of every angle, 1 the adapter."),
    kind: StrengthKind = typer.Option(
        None, "--strength-kind", help="What lies between. Default: as the file's own tool does, or geodesic."
    ),
    partial: bool = typer.Option(False, "--partial", help="Leave out layers of the adapter that the base has not."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace what is at OUT."),
) -> None:
    """Export an adapter, with the weights of its base, for tools that know no rotations.

    `dense` streams the base's files to merged ones, about one tensor in memory at a time; when it is interrupted, the
    same command goes on where it stopped. `lora` prints and writes the relative error of each layer. `diff` is exact.

    Examples:

      orthotune export style.safetensors merged --base stable-diffusion-v1-5 --to dense

      orthotune export runs/sft/adapter lora --base models/llama --to lora --error 0.05
    """
    if to is not Kind.LORA and (rank is not None or error is not None):
        raise typer.BadParameter("--rank and --error are for --to lora")
    if to is Kind.LORA and rank is None and error is None:
        raise typer.BadParameter("--to lora needs --rank or --error")
    options = said(series, coft, eps, project, boft_conv)
    export_adapter(
        adapter, out, base, to.value, rank=rank, error=error, options=options, strict=not partial, overwrite=overwrite,
        say=typer.echo, strength=strength, kind=kind and kind.value,
    )  # fmt: skip


def export_adapter(
    adapter: Path,
    out: Path,
    base: Path,
    to: str,
    *,
    rank: int | None = None,
    error: float | None = None,
    options: dict[str, Any] | None = None,
    strict: bool = True,
    overwrite: bool = False,
    say: Any = print,
    strength: float = 1.0,
    kind: Any = None,
) -> Path:
    """Export ``adapter`` on ``base`` to ``out``, which appears when it is complete.

    Raises:
        AdapterFileError: the adapter or a file of the base is damaged, or they do not belong together.
        MergeError: a weight would hold NaN or infinity, or the adapter holds more than rotations.
        UnsupportedLayerError: a layer that LoRA has no form for.
        OutputError: ``out`` is taken or cannot be written to.

    Example:
        >>> export_adapter(Path("style.safetensors"), Path("merged"), Path("sd15"), "dense")  # doctest: +SKIP
        PosixPath('merged')
    """
    from orthotune.files.output import resumable
    from orthotune.formats.read_options import ReadOptions
    from orthotune.formats.roster import read_adapter
    from orthotune.merging.stream import DenseMerge
    from orthotune_cli.own_place import refuse_place_of_adapter

    _check_options(options or {})
    _check_base(base)
    file = to == "diff" or base.is_file()
    if file and out.suffix != ".safetensors":
        from orthotune.errors import OutputError

        raise OutputError(f"OUT {out}", needed="a name that ends in .safetensors, for one file is written")
    if overwrite:
        refuse_place_of_adapter(out, adapter)
    state = read_adapter(adapter, ReadOptions(**(options or {})))
    # The place before the work: to find it closed after an hour would be a waste.
    with resumable(out, file=file, overwrite=overwrite, resume=to == "dense") as folder:
        merge = DenseMerge(state, base, strict=strict, strength=strength, kind=kind)
        say(str(merge.report))
        place = folder / out.name if file else folder
        with _progress() as bar:
            if to == "dense":
                _dense(merge, adapter, folder, out, bar, [json.dumps(options or {}, sort_keys=True), str(strict)])
            elif to == "diff":
                task = bar.add_task("changes", total=None)
                count = _diff(merge, place, lambda size: bar.advance(task, size))
                say(f"{count} tensors of change, exact for this base alone")
            else:
                _lora(merge, place, rank, error, {"task_type": state.config.get("task_type")}, bar, say)
    say(f"written  {out}")
    return out


def _check_options(options: dict[str, Any]) -> None:
    from orthotune.errors import ConfigError

    choices = {
        "series": ("current", "legacy"),
        "project": ("oft-control", "oft-db"),
        "boft_conv": ("rows", "scrambled"),
    }
    for name, allowed in choices.items():
        if options.get(name) not in (None, *allowed):
            raise ConfigError(f"--{name.replace('_', '-')} {options[name]}", needed=" or ".join(allowed))


def _check_base(base: Path) -> None:
    from orthotune.errors import AdapterFileError

    if not base.exists():
        raise AdapterFileError(
            f"There is no base at {base}", do="Check the path; a model on the hub must be downloaded first"
        )


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _dense(merge: DenseMerge, adapter: Path, folder: Path, out: Path, bar: Progress, said: list[str]) -> None:
    import orthotune
    from orthotune.files.journal import Journal, fingerprint

    own = [path for path in adapter.iterdir() if path.is_file()] if adapter.is_dir() else [adapter]
    weights = [shard.entries[0].path for part in merge.base.parts for shard in part.checkpoint.shards if shard.entries]
    small = [path for path in own if path.suffix in (".json", ".safetensors", ".bin") or path == adapter]
    words = [orthotune.__version__, str(merge.base.path.absolute()), *said, *merge.said]
    journal = Journal(folder, fingerprint(small, weights, words))
    task = bar.add_task("merging", total=merge.size)
    if merge.base.single_file:
        # A lone file takes the name that was asked for.
        merge.base.parts[0].checkpoint.shards[0].name = out.name
    merge.write(
        folder,
        lambda number, count, name: bar.update(task, description=f"{number} of {count}  {name}"),
        lambda size: bar.advance(task, size),
        journal,
    )
    journal.close()


def _diff(merge: DenseMerge, out: Path, told: Any) -> int:
    from orthotune.merging.diff_export import write_changes

    return write_changes(merge, out, told)


def _lora(
    merge: DenseMerge, out: Path, rank: int | None, error: float | None, fields: dict[str, Any], bar: Progress, say: Any
) -> None:
    from orthotune.merging.lora_export import Factors, factors, write_lora

    task = bar.add_task("decomposing", total=None)

    def told(layer: Factors) -> None:
        bar.advance(task, layer.up.numel() * 4)
        say(f"{layer.error:9.2e}  rank {layer.rank:<4} {layer.change.name}")

    say("relative error of each layer")
    layers = factors(merge, rank, error, told)
    write_lora(merge, layers, out, **fields)
    worst = max(layers, key=lambda layer: layer.error)
    say(f"{worst.error:9.2e}  at most, in {worst.change.name}")
