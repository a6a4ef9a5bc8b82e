"""Hyperspherical energy: how evenly the neurons of a weight spread over the sphere."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

from orthotune.errors import ConfigError


def _cosines(weight: Tensor, chunk: int) -> Iterator[tuple[int, int, Tensor]]:
    """Cosines between rows, a tile of ``chunk`` x ``chunk`` at a time, on and above the diagonal."""
    for i in range(0, weight.shape[0], chunk):
        left = normalize(weight[i : i + chunk].double(), dim=-1)
        for j in range(i, weight.shape[0], chunk):
            right = left if i == j else normalize(weight[j : j + chunk].double(), dim=-1)
            yield i, j, (left @ right.mT).clamp_(-1, 1)


def hyperspherical_energy(weight: Tensor, s: float = 1.0, half_space: bool = False, chunk: int = 2048) -> float:
    """Energy of the rows of ``weight`` (one neuron each), summed over ordered pairs ``i != j``.

    With unit rows ``w``: ``sum |w_i - w_j|^{-s}`` for ``s > 0`` and ``sum -log |w_i - w_j|`` for ``s = 0``. With
    ``half_space`` every neuron ``w_i`` also counts as ``-w_i``, so that opposite directions are equal.

    Shapes: ``(neurons, ...)``, further dimensions are flattened. Memory is ``3 chunk^2`` float64 values beside the
    weight. Two neurons of one direction give ``inf``; a rotation changes the value only by rounding.

    Raises:
        ConfigError: ``s`` is negative.

    Source: OFT, arXiv 2306.07280, equation 1; half-space: MHE, arXiv 1805.09298, section 3.3.

    Example:
        >>> hyperspherical_energy(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        1.0
    """
    if s < 0:
        raise ConfigError(f"s={s} for the hyperspherical energy", needed="0, 1, 2 or another number >= 0")
    weight = weight.detach().flatten(1)

    def potential(cosine: Tensor) -> Tensor:
        squared = (2 - 2 * cosine).clamp_(min=0)
        return -0.5 * squared.log() if s == 0 else squared.pow(-s / 2)

    total = torch.zeros((), dtype=torch.float64, device=weight.device)
    for i, j, cosine in _cosines(weight, chunk):
        energy = potential(cosine)
        if half_space:
            energy = energy + potential(-cosine)
        if i == j:
            own = torch.diagonal(energy)
            own.copy_(potential(-torch.ones_like(own)) if half_space else torch.zeros_like(own))
        total += energy.sum() * (1 if i == j else 2)
    return float(total) * (2 if half_space else 1)


def pairwise_angles(weight: Tensor, chunk: int = 2048) -> Tensor:
    """Angles between all rows of ``weight``, in radians; what orthogonal finetuning keeps.

    Shapes: ``(neurons, ...)`` -> ``(neurons, neurons)`` float64, symmetric, zeros on the diagonal.

    Example:
        >>> pairwise_angles(torch.eye(2))
        tensor([[0.0000, 1.5708],
                [1.5708, 0.0000]], dtype=torch.float64)
    """
    weight = weight.detach().flatten(1)
    angles = torch.zeros(weight.shape[0], weight.shape[0], dtype=torch.float64, device=weight.device)
    for i, j, cosine in _cosines(weight, chunk):
        tile = cosine.acos()
        angles[i : i + tile.shape[0], j : j + tile.shape[1]] = tile
        angles[j : j + tile.shape[1], i : i + tile.shape[0]] = tile.mT
    return angles.fill_diagonal_(0)
