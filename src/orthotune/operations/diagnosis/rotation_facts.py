"""What one rotation says of itself, without the weight that it turns."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from orthotune.rotation.ball import coft_radius
from orthotune.rotation.measure import distance_from_identity, orthogonality_error, rotation_angles
from orthotune.rotation.packing import unpack
from orthotune.rotation.spec import RotationSpec

#: bars of an angle histogram, from 0 to pi
BARS = 24
#: a block whose largest stored number is below this has not moved
STILL = 1e-8


@dataclass(frozen=True)
class RotationFacts:
    """One rotation. Angles are radians, norms Frobenius norms.

    Args:
        layer, part: where; ``part`` names one of several matrices of a layer, "" otherwise.
        side: ``in`` or ``out``.
        map: ``exact``, or the series that stands for it.
        block_size, blocks: size, and number of stored blocks (a shared block counts once).
        angle_max, angle_mean: over the planes of all blocks.
        angle_counts: planes in :data:`BARS` equal bars from 0 to pi.
        distance: root mean square over the blocks of the norm of ``R - I``.
        orthogonality_error: largest norm of ``R Rᵀ - I``.
        skew_norm: largest singular value of a skew block; a series converges below 1.
        dead: share of the blocks that have not moved.
        saturation: share of the blocks on the surface of COFT's ball; None without COFT.
        angles: of every plane, float32; not part of a record.
    """

    layer: str
    part: str
    side: str
    map: str
    block_size: int
    blocks: int
    angle_max: float
    angle_mean: float
    angle_counts: tuple[int, ...]
    distance: float
    orthogonality_error: float
    skew_norm: float
    dead: float
    saturation: float | None
    angles: Tensor = field(default_factory=lambda: torch.zeros(0), repr=False, compare=False)

    def record(self, top: float) -> dict[str, Any]:
        """Plain values, with ``angle_histogram``: planes in :data:`BARS` equal bars from 0 to ``top`` radians."""
        found = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "angles"}
        counts = torch.histc(self.angles.clamp(0, top), BARS, 0, top) if self.angles.numel() and top > 0 else ()
        return found | {
            "angle_counts": list(self.angle_counts),
            "angle_histogram": [int(count) for count in counts],
        }


def rotation_facts(R: Tensor, v: Tensor, spec: RotationSpec, *, layer: str, part: str = "") -> RotationFacts:
    """The facts of a rotation.

    Args:
        R: ``(blocks, b, b)``.
        v: its packed skew blocks ``(blocks, b (b - 1) / 2)``, as :meth:`RotationSpec.vector` gives them.
        spec: what it is; without an ``eps`` nothing is said of COFT's ball.
        layer: where, for the record; ``part`` is the matrix of a layer that has several.

    Example:
        >>> rotation_facts(torch.eye(2)[None], torch.zeros(1, 1), RotationSpec(), layer="q").dead
        1.0
    """
    size = R.shape[-1]
    R, v = R.detach().reshape(-1, size, size), v.detach().reshape(-1, v.shape[-1]).double()
    angles = rotation_angles(R).flatten()
    largest = v.abs().amax(-1) if v.shape[-1] else v.new_zeros(v.shape[0])
    at_surface = None
    if spec.eps is not None:
        norms = v.norm(dim=-1) * math.sqrt(2)
        # The projection leaves a block within some roundings of the surface.
        at_surface = (norms >= coft_radius(spec.eps, v.shape[0]) * (1 - 1e-4)).double().mean().item()
    counts = torch.histc(angles.clamp(0, math.pi), BARS, 0, math.pi) if angles.numel() else torch.zeros(BARS)
    return RotationFacts(
        layer=layer,
        part=part,
        side=spec.side,
        map=spec.map,
        block_size=size,
        blocks=R.shape[0],
        angle_max=angles.max().item() if angles.numel() else 0.0,
        angle_mean=angles.mean().item() if angles.numel() else 0.0,
        angle_counts=tuple(int(count) for count in counts),
        distance=distance_from_identity(R.double()).square().mean().sqrt().item(),
        orthogonality_error=orthogonality_error(R).max().item(),
        skew_norm=torch.linalg.matrix_norm(unpack(v, size), 2).max().item(),
        dead=(largest < STILL).double().mean().item(),
        saturation=at_surface,
        angles=angles.float().cpu(),
    )
