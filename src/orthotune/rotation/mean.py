"""Several rotations made one: a mean on the geodesics, a product, a sum of logarithms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from orthotune.errors import OrthotuneError
from orthotune.rotation.geodesic import planes

#: largest number of steps; convergence is only slow for rotations that are nearly pi apart
STEPS = 200


def karcher_mean(rotations: Tensor, weights: Sequence[float]) -> Tensor:
    """The rotation whose weighted logarithms to all others sum to nothing: the mean on the geodesics.

    Shapes: ``rotations`` ``(k, ..., b, b)``, ``k`` weights above 0 of any sum; returns float64 ``(..., b, b)``.
    Source: H. Karcher, 1977; the fixed-point iteration ``M <- M exp(sum w_i log(M^T R_i))``.

    Raises:
        OrthotuneError: the rotations lie so far apart that they have no mean of their own.

    Example:
        >>> quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
        >>> mean = karcher_mean(torch.stack([quarter, torch.eye(2, dtype=torch.float64)]), [1.0, 1.0])
        >>> torch.allclose(mean @ mean, quarter)
        True
    """
    shares = torch.tensor(weights, dtype=torch.float64, device=rotations.device)
    shares = (shares / shares.sum()).view(-1, *(1 for _ in rotations.shape[1:]))
    rotations = rotations.double()
    mean = rotations[int(shares.argmax())]
    for _ in range(STEPS):
        step = (shares * planes(mean.mT @ rotations).logarithm()).sum(0)
        mean = mean @ torch.linalg.matrix_exp(step)
        if step.abs().max() < 1e-13:
            return mean
    raise OrthotuneError(
        "the mean of the rotations",
        got=f"a step of {step.abs().max():.1g} after {STEPS}: some rotations are pi apart",
        do="Use combination_type='tangent' or 'product', which need no mean",
    )


def geodesic_combination(rotations: Tensor, weights: Sequence[float]) -> Tensor:
    """The weighted mean to the power of the sum of the weights: ``R^w`` for one, a product where all commute.

    A negative weight takes the inverse rotation. Shapes: as for :func:`karcher_mean`.
    """
    total = sum(map(abs, weights))
    kept = [i for i, weight in enumerate(weights) if weight]
    if not kept:
        return torch.eye(rotations.shape[-1], dtype=torch.float64).expand(rotations.shape[1:]).clone()
    rotated = torch.stack([rotations[i] if weights[i] > 0 else rotations[i].mT for i in kept])
    return planes(karcher_mean(rotated, [abs(weights[i]) for i in kept])).power(total)


def product(rotations: Tensor, weights: Sequence[float], last_first: bool = False) -> Tensor:
    """``R_1^w1 R_2^w2 ...``, or ``... R_2^w2 R_1^w1``. Shapes: as for :func:`karcher_mean`."""
    powers = [planes(R).power(weight) for R, weight in zip(rotations, weights, strict=True)]
    found = powers[0]
    for power in powers[1:]:
        found = power @ found if last_first else found @ power
    return found


def logarithms(rotations: Tensor) -> Tensor:
    """The skew logarithms, float64. Shapes: ``(..., b, b)`` -> the same."""
    return planes(rotations).logarithm()
