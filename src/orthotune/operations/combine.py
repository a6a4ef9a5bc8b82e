"""``combine``: make one adapter from several."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from orthotune.errors import ConfigError
from orthotune.files.output import check_output, new_folder
from orthotune.formats.writers import of_stock, write_folder
from orthotune.operations.adapter import Adapter, read_once
from orthotune.operations.checkpoint.combine_files import combine_states, summed_changes
from orthotune.operations.checkpoint.lora_export import factors, write_lora
from orthotune.operations.checkpoint.stream import DenseMerge
from orthotune.rotation.low_rank import check_sizes
from orthotune.tuner.combination import Combination

CombinationType = Literal["geodesic", "product", "tangent", "ties", "svd_lora"]


@dataclass(frozen=True)
class Combined:
    """What :func:`combine` wrote.

    Attributes:
        out: the folder.
        layers: number of layers of the new adapter.
        notes: warnings about the result.
        error: with ``svd_lora``, the largest relative error of a change in the Frobenius norm; None otherwise.
        layer: the layer with that error.
    """

    out: Path
    layers: int
    notes: tuple[str, ...] = ()
    error: float | None = None
    layer: str = ""


def combine(
    adapters: Sequence[str | Path],
    weights: Sequence[float],
    out: str | Path,
    combination_type: CombinationType = "geodesic",
    *,
    density: float | None = None,
    magnitude_correction: bool = False,
    base: str | Path | None = None,
    rank: int | None = None,
    overwrite: bool = False,
) -> Combined:
    """Combine adapters of one base into a single one that loads like any other.

    ``geodesic``, ``tangent`` and ``ties`` do not depend on the order. ``product`` does: the first adapter acts first.
    ``svd_lora`` adds up the changes of the weights and approximates the sum by a LoRA, which is not a rotation.

    Args:
        adapters: files or folders of any readable format, in their order. Each is read once.
        weights: one for each adapter; 1 is the adapter as it was trained.
        out: folder of the new adapter; it appears when it is complete.
        combination_type: the method of combining.
        density: with ``ties``, the share of the parameters that is kept, 0 to 1.
        magnitude_correction: with ``tangent`` and ``ties``, keep the size of the changes where their directions cancel
            each other, see :class:`orthotune.tuner.combination.Combination`.
        base: with ``svd_lora``, the base as for :func:`~orthotune.operations.export.export`.
        rank: with ``svd_lora``, the rank of every layer.
        overwrite: replace what is at ``out``.

    Returns:
        A description of the written adapter.

    Raises:
        ConfigError: an argument is missing, or not allowed with this ``combination_type``.
        AdapterFileError: an adapter is damaged, or they do not belong together.
        UnsupportedLayerError: the adapters have no common form at a layer.
        OutputError: ``out`` exists already or cannot be written to.

    Example:
        >>> import tempfile, torch
        >>> from orthotune.formats import AdapterState, LayerState, read_adapter
        >>> from orthotune.formats.writers import write_adapter
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name, number in (("style", 1.0), ("subject", -1.0)):
        ...     layer = LayerState({"": torch.full((2, 1), number)})  # 90 degrees, and -90 degrees
        ...     path = write_adapter(AdapterState({"blk.lin": layer}), folder / name, "orthotune")
        >>> done = combine([folder / "style", folder / "subject"], [1.0, 0.5], folder / "both")
        >>> read_adapter(done.out).layers["blk.lin"].rotation()[0]  # 45 degrees remain
        tensor([[ 0.7071, -0.7071],
                [ 0.7071,  0.7071]])
    """
    out = Path(out)
    lora = combination_type == "svd_lora"
    if lora != (base is not None and rank is not None) or (not lora and (base or rank)):
        raise ConfigError(
            f"--type {combination_type}", needed="--base and --rank with svd_lora, and only with svd_lora"
        )
    if lora and magnitude_correction:
        raise ConfigError("magnitude_correction with svd_lora", needed="tangent or ties", do="Leave it out")
    if rank is not None:
        check_sizes(rank, None)
    if len(adapters) != len(weights):
        raise ConfigError(f"{len(weights)} weights for {len(adapters)} adapters", needed="one weight for each adapter")
    if not all(math.isfinite(weight) for weight in weights):
        raise ConfigError(f"weights {list(weights)}", needed="one finite number for each adapter")
    if lora:
        assert base is not None and rank is not None
        with new_folder(out, overwrite=overwrite) as folder:
            return _svd_lora([read_once(path) for path in adapters], weights, base, rank, folder, out)
    how: Any = combination_type
    combination = Combination(tuple(weights), how, density, magnitude_correction=magnitude_correction)
    check_output(out, "--out", file=False, overwrite=overwrite)
    states = [read_once(path).state for path in adapters]
    with new_folder(out, overwrite=overwrite) as folder:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            combined = combine_states(states, combination)
        write_folder(combined, folder, stock=of_stock(states))
    return Combined(out, len(combined.layers) + len(combined.transforms), tuple(str(one.message) for one in caught))


def _svd_lora(
    adapters: Sequence[Adapter], weights: Sequence[float], base: str | Path, rank: int, folder: Path, out: Path
) -> Combined:
    merges = [DenseMerge(adapter, base) for adapter in adapters]
    layers = factors(merges[0], rank, None, None, summed_changes(merges, weights))
    write_lora(merges[0], layers, folder, task_type=adapters[0].state.config.get("task_type"))
    worst = max(layers, key=lambda layer: layer.error)
    return Combined(out, len(layers), error=worst.error, layer=worst.change.name)
