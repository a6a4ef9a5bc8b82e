"""``orthotune combine``: several adapters become one."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import typer


class CombinationType(str, Enum):
    """The ways to combine."""

    GEODESIC = "geodesic"
    PRODUCT = "product"
    TANGENT = "tangent"
    TIES = "ties"
    SVD_LORA = "svd_lora"


def combine(
    adapters: list[str] = typer.Argument(help="ADAPTER:WEIGHT, several; 1 is the whole adapter, as without :WEIGHT."),
    out: Path = typer.Option(..., "--out", "-o", help="Folder of the new adapter; appears when it is complete."),
    how: CombinationType = typer.Option(CombinationType.GEODESIC, "--type", help="geodesic: mean. product: in order."),
    density: float = typer.Option(None, "--density", help="ties: the share of the numbers that is kept."),
    base: Path = typer.Option(None, "--base", "-b", help="svd_lora: the base, as for export."),
    rank: int = typer.Option(None, "--rank", min=1, help="svd_lora: rank of every layer."),
    overwrite: bool = typer.Option(False, "--overwrite", help="Replace what is at --out."),
) -> None:
    """Combine adapters of one base into a single one that loads like any other.

    `geodesic`, `tangent` and `ties` do not depend on the order. `product` does: the first adapter acts first.
    `svd_lora` adds up the changes of the weights and cuts them to a low rank, which is no rotation any more.

    Example: orthotune combine style:0.7 subject:0.3 --out both
    """
    for line in combine_adapters(
        adapters, out, how.value, density=density, base=base, rank=rank, overwrite=overwrite
    ):  # fmt: skip
        typer.echo(line)


def combine_adapters(
    adapters: Sequence[str],
    out: Path,
    how: str = "geodesic",
    *,
    density: float | None = None,
    base: Path | None = None,
    rank: int | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Combine the adapters at ``PATH:WEIGHT`` and return what is to be told.

    Raises:
        ConfigError: an option that is missing or has no meaning here.
        AdapterFileError: an adapter is damaged, or they do not belong together.
        UnsupportedLayerError: the adapters have no common form at a layer.
        OutputError: ``out`` is taken or cannot be written to.

    Example:
        >>> combine_adapters(["style:0.7", "subject:0.3"], Path("both"))  # doctest: +SKIP
        ['0.7           style', '0.3           subject', ...]
    """
    from orthotune.errors import ConfigError
    from orthotune.formats.roster import read_adapter
    from orthotune_cli.place import new_folder

    if (how == "svd_lora") != (base is not None and rank is not None) or (how != "svd_lora" and (base or rank)):
        raise ConfigError(f"--type {how}", needed="--base and --rank for svd_lora, and for it alone")
    parted = [_parted(word) for word in adapters]
    lines = [f"{weight:<13g} {path}" for path, weight in parted]
    weights = [weight for _, weight in parted]
    if how == "svd_lora":
        assert base is not None and rank is not None
        with new_folder(out, overwrite=overwrite) as folder:
            lines += _svd_lora([read_adapter(path) for path, _ in parted], weights, base, rank, folder)
        return [*lines, f"written       {out}, a LoRA"]
    lines += _one_adapter([path for path, _ in parted], weights, how, density, out, overwrite)
    return [*lines, f"written       {out}"]


def _one_adapter(
    paths: Sequence[Path], weights: Sequence[float], how: Any, density: float | None, out: Path, overwrite: bool
) -> list[str]:
    import warnings

    from orthotune.formats.convert import convert
    from orthotune.formats.roster import read_adapter
    from orthotune.formats.writers import write_adapter
    from orthotune.merging.combine_files import combine_states
    from orthotune.tuner.combination import Combination
    from orthotune_cli.place import new_folder

    combination = Combination(tuple(weights), how, density)
    states = [read_adapter(path) for path in paths]
    with new_folder(out, overwrite=overwrite) as folder:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            combined = combine_states(states, combination)
        ready, _ = convert(combined, "orthotune")
        write_adapter(ready, folder, "orthotune")
    order = ", the first acts first" if how == "product" else ""
    notes = [f"note          {one.message}" for one in told]
    return [*notes, f"layers        {len(combined.layers)}", f"type          {how}{order}"]


def _svd_lora(states: Sequence[Any], weights: Sequence[float], base: Path, rank: int, folder: Path) -> list[str]:
    from orthotune.merging.combine_files import summed_changes
    from orthotune.merging.lora_export import factors, write_lora
    from orthotune.merging.stream import DenseMerge

    merges = [DenseMerge(state, base) for state in states]
    layers = factors(merges[0], rank, None, None, summed_changes(merges, weights))
    write_lora(merges[0], layers, folder, task_type=states[0].config.get("task_type"))
    worst = max(layers, key=lambda layer: layer.error)
    return [
        f"layers        {len(layers)}", "type          svd_lora, an approximation",
        f"error         {worst.error:.2e} at most (relative, of a change), in {worst.change.name}",
    ]  # fmt: skip


def _parted(word: str) -> tuple[Path, float]:
    """A path and its weight; a colon of the path itself is left alone."""
    path, colon, weight = word.rpartition(":")
    if not colon:
        return Path(word), 1.0
    try:
        return Path(path), float(weight)
    except ValueError:
        if Path(word).exists():
            return Path(word), 1.0
        from orthotune.errors import ConfigError

        raise ConfigError(f"'{word}'", needed="ADAPTER:WEIGHT with a number, as style:0.7") from None
