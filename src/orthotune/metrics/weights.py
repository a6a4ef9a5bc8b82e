"""How finetuning changed weights: hyperspherical energy, angles between neurons, orthogonality of rotations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from orthotune.rotation.energy import hyperspherical_energy
from orthotune.rotation.measure import orthogonality_error

# The energy of 16,384 neurons would cost 256 times as much, with the same result.
MOST_NEURONS = 1024


@dataclass(frozen=True)
class LayerChange:
    """Relative changes of one layer; both are 0, up to rounding, when the layer was only rotated."""

    name: str
    energy: float
    angles: float


def layer_changes(pairs: Iterable[tuple[str, Tensor, Tensor]], most: int = MOST_NEURONS) -> list[LayerChange]:
    """The change of each layer given as (name, weight before, weight after).

    ``energy`` is the relative change of the hyperspherical energy, ``angles`` that of the matrix of cosines between
    neurons in Frobenius norm. Layers of more than ``most`` neurons are measured on that many, evenly spread.

    Shapes: weights ``(neurons, inputs)``.

    Example:
        >>> weight = torch.eye(3)
        >>> layer_changes([("rotated", weight, weight.roll(1, dims=1))])[0].energy
        0.0
    """
    return [_change(name, _spread(before, most), _spread(after, most)) for name, before, after in pairs]


def worst_orthogonality_error(rotations: Iterable[Tensor]) -> float | None:
    """The largest Frobenius norm of ``R Rᵀ - I`` over all blocks of all rotations; None without any.

    Shapes: each ``(..., b, b)``.
    """
    return max((float(orthogonality_error(R).max()) for R in rotations), default=None)


def _spread(weight: Tensor, most: int) -> Tensor:
    rows = weight.shape[0]
    chosen = torch.linspace(0, rows - 1, min(rows, most), device=weight.device).round().long()
    return weight.detach()[chosen].double()


def _change(name: str, before: Tensor, after: Tensor) -> LayerChange:
    old, new = hyperspherical_energy(before), hyperspherical_energy(after)
    was, now = (normalize(weight, dim=-1) for weight in (before, after))
    was, now = was @ was.mT, now @ now.mT
    return LayerChange(name, abs(new - old) / abs(old), float((now - was).norm() / was.norm()))
