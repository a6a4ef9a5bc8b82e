"""The effect of an adapter on the weight of a layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from orthotune.rotation.energy import hyperspherical_energy

#: Largest number of neurons that are measured. The cost grows with the square, for the spectrum with the cube.
MOST = 512


@dataclass(frozen=True)
class WeightFacts:
    """Measurements of one weight before and after the rotation.

    Args:
        energy_before, energy_after: hyperspherical energy of the rotated vectors, of at most :data:`MOST`.
        spectrum_change: relative change of their singular values, ``|s' - s| / |s|``; 0 for a rotation.
        weight_change: relative distance ``|W' - W| / |W|``.
    """

    energy_before: float
    energy_after: float
    spectrum_change: float
    weight_change: float


def weight_facts(before: Tensor, after: Tensor) -> WeightFacts:
    """Measure a weight ``(neurons, features)``, or the first copy of ``(copies, neurons, features)``.

    Example:
        >>> weight_facts(torch.eye(3), torch.eye(3).roll(1, 1)).spectrum_change
        0.0
    """
    before, after = (weight.detach()[0] if weight.dim() == 3 else weight.detach() for weight in (before, after))
    rows = torch.linspace(0, before.shape[0] - 1, min(before.shape[0], MOST), device=before.device).round().long()
    old, new = before[rows].double(), after[rows].double()
    was, now = _singular(old), _singular(new)
    return WeightFacts(
        energy_before=hyperspherical_energy(old),
        energy_after=hyperspherical_energy(new),
        spectrum_change=((now - was).norm() / was.norm().clamp(min=torch.finfo(torch.float64).tiny)).item(),
        weight_change=((new - old).norm() / old.norm().clamp(min=torch.finfo(torch.float64).tiny)).item(),
    )


def _singular(weight: Tensor) -> Tensor:
    return torch.linalg.svdvals(weight)
