"""Change of the weights by finetuning: hyperspherical energy, angles between neurons, orthogonality of rotations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from orthotune.rotation.energy import hyperspherical_energy
from orthotune.rotation.measure import orthogonality_error

# The cost is quadratic: 16,384 neurons would take 256 times as long and give the same value.
MOST_NEURONS = 1024


@dataclass(frozen=True)
class LayerChange:
    """Relative changes of one layer. Both are 0, up to rounding, for a layer whose weight was only rotated."""

    name: str
    energy: float
    angles: float


def layer_changes(pairs: Iterable[tuple[str, Tensor, Tensor]], most: int = MOST_NEURONS) -> list[LayerChange]:
    """The relative change of each layer.

    ``energy`` is the relative change of the hyperspherical energy, ``angles`` the relative change, in Frobenius norm,
    of the matrix of cosines between neurons.

    Args:
        pairs: name, weight before and weight after of each layer; weights ``(neurons, inputs)``.
        most: a layer with more neurons is measured on this many, evenly spread.

    Example:
        >>> weight = torch.eye(3)
        >>> layer_changes([("rotated", weight, weight.roll(1, dims=1))])[0].energy
        0.0
    """
    return [_change(name, _spread(before, most), _spread(after, most)) for name, before, after in pairs]


def worst_orthogonality_error(rotations: Iterable[Tensor]) -> float | None:
    """The largest Frobenius norm of ``R Rᵀ - I`` over all blocks of all rotations; None without rotations.

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
