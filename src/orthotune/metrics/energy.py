"""Hyperspherical energy of each layer and of all layers together, before and after finetuning."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from orthotune.errors import DataError
from orthotune.metrics.measured import Measured
from orthotune.rotation.energy import hyperspherical_energy


def measure_energy(
    pairs: Iterable[tuple[str, Tensor, Tensor]], *, s: float = 1.0, half_space: bool = False
) -> Measured:
    """The energy of each layer before and after, the relative changes, and the totals.

    A rotation of the neurons does not change the energy, up to rounding. All neurons are used; memory is one layer and
    some tiles.

    Args:
        pairs: name, weight before and weight after of each layer; weights ``(neurons, inputs)``.
        s: as in :func:`~orthotune.rotation.energy.hyperspherical_energy`.
        half_space: as in :func:`~orthotune.rotation.energy.hyperspherical_energy`.


    Raises:
        DataError: no layer.
        ConfigError: ``s`` is negative.

    Source: OFT, arXiv 2306.07280, equation 1.

    Example:
        >>> import torch
        >>> weight = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> measure_energy([("rotated", weight, weight.flip(1))]).summary
        {'before': 1.0, 'after': 1.0, 'change': 0.0}
    """
    measured = Measured("energy", settings={"s": s, "half_space": half_space}, columns=())
    for name, before, after in pairs:
        old, new = (hyperspherical_energy(weight, s, half_space) for weight in (before, after))
        row = {"name": name, "neurons": before.shape[0], "before": old, "after": new, "change": _relative(old, new)}
        measured.rows.append(row)
    if not measured.rows:
        raise DataError(
            "energy", got="no layer that was trained", needed="linear layers with an adapter, or two models"
        )
    old, new = (sum(row[key] for row in measured.rows) for key in ("before", "after"))
    measured.summary = {"before": old, "after": new, "change": _relative(old, new)}
    return measured


def _relative(before: float, after: float) -> float:
    return abs(after - before) / abs(before) if before else abs(after - before)
