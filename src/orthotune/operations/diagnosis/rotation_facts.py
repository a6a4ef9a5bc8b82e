"""Measurements of one rotation, without the weight."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from orthotune.rotation.coft import coft_radius
from orthotune.rotation.measure import distance_from_identity, orthogonality_error, rotation_angles
from orthotune.rotation.packing import unpack
from orthotune.rotation.spec import RotationSpec

#: Bars of an angle histogram, from 0 to pi.
BARS = 24
#: A block counts as unmoved if its largest stored parameter is below this.
STILL = 1e-8
#: A map that is computed from numbers other than 0 is the identity to the rounding of float32.
STILL_MATRIX = 1e-5


@dataclass(frozen=True)
class RotationFacts:
    """Measurements of one rotation. Angles are in radians, norms are Frobenius norms.

    Args:
        layer, part: name of the layer; ``part`` is the name of the matrix in a layer with several, "" otherwise.
        side: ``in`` or ``out``.
        map: ``exact``, or the series that approximates the Cayley transform.
        block_size, blocks: size, and number of stored blocks (a shared block counts once).
        angle_max, angle_mean: largest and mean angle over the planes of all blocks.
        angle_counts: planes in :data:`BARS` equal bars from 0 to pi.
        distance: root mean square over the blocks of the norm of ``R - I``.
        orthogonality_error: largest norm of ``R Rᵀ - I``.
        skew_norm: largest singular value of a skew block; a series converges below 1. None for transforms other than
            blocks.
        dead: share of the blocks that have not moved.
        saturation: share of the blocks at the COFT radius; None without COFT.
        transform: name of the transform. Of one other than blocks, the block is what it does within the span of its
            vectors; the rest of the space is at rest.
        angles: angle of every plane, float32; not part of a record.
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
    skew_norm: float | None
    dead: float
    saturation: float | None
    transform: str = "blocks"
    angles: Tensor = field(default_factory=lambda: torch.zeros(0), repr=False, compare=False)

    def record(self, top: float) -> dict[str, Any]:
        """Plain values, with ``angle_histogram``: planes in :data:`BARS` equal bars from 0 to ``top`` radians."""
        found = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "angles"}
        counts = torch.histc(self.angles.clamp(0, top), BARS, 0, top) if self.angles.numel() and top > 0 else ()
        return found | {
            "angle_counts": list(self.angle_counts),
            "angle_histogram": [int(count) for count in counts],
        }


def rotation_facts(R: Tensor, v: Tensor | None, spec: RotationSpec, *, layer: str, part: str = "") -> RotationFacts:
    """Measure a rotation.

    Args:
        R: the blocks, ``(blocks, b, b)``.
        v: the packed skew blocks ``(blocks, b (b - 1) / 2)``, as :meth:`RotationSpec.vector` gives them; None for a
            transform other than blocks.
        spec: spec of the rotation; without an ``eps`` the saturation is None.
        layer: name of the layer, for the record.
        part: name of the matrix, in a layer that has several.

    Example:
        >>> rotation_facts(torch.eye(2)[None], torch.zeros(1, 1), RotationSpec(), layer="q").dead
        1.0
    """
    size = R.shape[-1]
    R = R.detach().reshape(-1, size, size)
    angles = rotation_angles(R).flatten()
    at_surface = None
    if v is None:
        largest = distance_from_identity(R.double())
    else:
        v = v.detach().reshape(-1, v.shape[-1]).double()
        largest = v.abs().amax(-1) if v.shape[-1] else v.new_zeros(v.shape[0])
    if spec.eps is not None and v is not None:
        norms = v.norm(dim=-1) * math.sqrt(2)
        # After the projection, the norm of a block equals the radius up to rounding.
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
        skew_norm=None if v is None else torch.linalg.matrix_norm(unpack(v, size), 2).max().item(),
        dead=(largest < (STILL if v is not None else STILL_MATRIX)).double().mean().item(),
        saturation=at_surface,
        transform=spec.transform,
        angles=angles.float().cpu(),
    )
