"""Measures of an adapter that need no base model: the rotation angles and the orthogonality error of each layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import Tensor

from orthotune.formats.adapter_state import AdapterState
from orthotune.rotation.family import FamilyTransform
from orthotune.rotation.measure import orthogonality_error, rotation_angles


@dataclass(frozen=True)
class RotationMeasure:
    """One rotation of one layer.

    Units: angles in radians; ``orthogonality_error`` is the largest Frobenius norm of ``R Rᵀ - I`` of its blocks.
    ``blocks`` is the number of stored blocks: a shared block is stored once.
    """

    layer: str
    part: str
    side: str
    block_size: int
    blocks: int
    shared: bool
    parameters: int
    angle_max: float
    angle_mean: float
    orthogonality_error: float


def measure(state: AdapterState) -> Iterator[RotationMeasure]:
    """One measure for each rotation of the adapter, in the order of its file.

    Example:
        >>> import torch
        >>> from orthotune.formats.adapter_state import LayerState
        >>> [m.angle_max for m in measure(AdapterState({"lin": LayerState({"": torch.zeros(2, 3)})}))]
        [0.0]
    """
    for name, layer in state.layers.items():
        for part, R in layer.factors():
            yield _measure(name, part, layer.side, R, layer.spec.shared)
    for name, transform in state.transforms.items():
        for part, R in transform.factors():
            found = _measure(name, part, transform.side, R, shared=False)
            if isinstance(transform, FamilyTransform):
                found = replace(found, parameters=transform.numbers.numel())
            yield found


def _measure(layer: str, part: str, side: str, R: Tensor, shared: bool) -> RotationMeasure:
    angles = rotation_angles(R)
    size = R.shape[-1]
    return RotationMeasure(
        layer=layer,
        part=part,
        side=side,
        block_size=size,
        blocks=R.shape[0],
        shared=shared,
        parameters=R.shape[0] * size * (size - 1) // 2,
        angle_max=angles.max().item(),
        angle_mean=angles.mean().item(),
        orthogonality_error=orthogonality_error(R).max().item(),
    )
