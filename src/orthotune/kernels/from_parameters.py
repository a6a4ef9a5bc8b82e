"""Rotation from the packed parameters that a file or a layer holds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from orthotune.rotation.ball import coft_radius, project
from orthotune.rotation.cayley import cayley
from orthotune.rotation.neumann import neumann
from orthotune.rotation.packing import unpack

NeumannSeries = Literal["current", "legacy"]


@dataclass(frozen=True)
class RotationMap:
    """From stored numbers to a rotation.

    Args:
        block_size: size of a block.
        exact: exact Cayley map; otherwise a Neumann polynomial with ``terms``.
        series: ``"legacy"`` is the polynomial of PEFT 0.16-0.17.
        scaled: the stored numbers are divided by ``2 sqrt(b - 1)``, so that one learning rate fits every block size.
        eps: radius of COFT's ball in PEFT's units (see :func:`coft_radius`); None leaves the rotation free.

    Example:
        >>> RotationMap(block_size=2)(torch.zeros(3, 1)).shape
        torch.Size([3, 2, 2])
    """

    block_size: int
    exact: bool = True
    terms: int = 5
    series: NeumannSeries = "current"
    scaled: bool = False
    eps: float | None = None

    @property
    def scale(self) -> float:
        """Factor between the stored numbers and the skew matrix."""
        return 1 / (2 * math.sqrt(self.block_size - 1)) if self.scaled else 1.0

    def within_ball(self, v: Tensor) -> Tensor:
        """The stored numbers ``(rows, n)`` after COFT's projection; unchanged without COFT."""
        return v if self.eps is None else project(v, coft_radius(self.eps, v.shape[-2]) / self.scale)

    def __call__(self, v: Tensor) -> Tensor:
        """Rotations ``(rows, b, b)`` of the stored numbers ``(rows, n)``; float32, or float64 for float64 numbers."""
        v = v.to(torch.promote_types(v.dtype, torch.float32))
        Q = unpack(self.within_ball(v) * self.scale, self.block_size)
        return cayley(Q) if self.exact else neumann(Q, self.terms, self.series == "legacy")
