"""What an adapter is at one layer: the record that a config, a layer and a file all hold."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from orthotune.rotation.cayley import cayley, cayley_plain
from orthotune.rotation.coft import coft_radius, project
from orthotune.rotation.neumann import neumann
from orthotune.rotation.packing import unpack
from orthotune.rotation.strength import Kind

#: ``in``: ``W' = W R^T``, the layer's input is rotated. ``out``: ``W' = R W``, its output is.
Side = Literal["in", "out"]
#: ``neumann_legacy`` is the series of PEFT 0.16 and 0.17, ``neumann`` the one of 0.18 and later.
Map = Literal["exact", "neumann", "neumann_legacy"]
#: what ``side="in"`` rotates in a convolution: all that a kernel sees ``(in, kernel)``, or the channels of the input,
#: the same way at every point of the kernel
ConvLayout = Literal["kernel", "channels"]


@dataclass(frozen=True)
class RotationSpec:
    """An orthogonal transform of one weight, without its parameters. Pure data; equal specs mean the same map.

    Args:
        block_size: size ``b`` of a block; 0 while the width of the layer has yet to decide.
        side: whether the layer's inputs or its outputs are rotated.
        map: from skew matrices to rotations: the exact Cayley map, or one of PEFT's two Neumann polynomials.
        terms: length of a polynomial.
        shared: one stored block is used for all blocks.
        scaled: the stored parameters are divided by ``2 sqrt(b - 1)``, so that one learning rate fits every block size.
        eps: COFT radius in PEFT's units (see :func:`~orthotune.rotation.coft.coft_radius`), which bounds the
            Frobenius norm of each skew block; None leaves the rotation free.
        dropout: probability that a block is the identity, in training.
        magnitude: a trained scale for each output neuron beside the rotation.
        dtype: of the stored parameters, float32 or float64.
        blend: what strengths other than 1 mean until another kind is set.
        transform: name of the transform in :data:`orthotune.rotation.transform.TRANSFORMS`.
        rank: number of reflections, or of dimensions of a subspace; 0 for transforms that are made of blocks.
        factors: number of stages of a butterfly.
        variant: the variant of a transform that has several; "" for its usual one.
        conv: what ``side="in"`` rotates in a convolution; of no matter for other layers.

    Source: OFT, arXiv 2306.07280, section 3; the fields' meaning is that of PEFT's ``OFTConfig``.

    Example:
        >>> RotationSpec(block_size=2).rotation(torch.zeros(3, 1)).shape
        torch.Size([3, 2, 2])
    """

    block_size: int = 0
    side: Side = "in"
    map: Map = "exact"
    terms: int = 5
    shared: bool = False
    scaled: bool = False
    eps: float | None = None
    dropout: float = 0.0
    magnitude: bool = False
    dtype: torch.dtype = torch.float32
    blend: Kind = "geodesic"
    transform: str = "blocks"
    rank: int = 0
    factors: int = 1
    variant: str = ""
    conv: ConvLayout = "kernel"

    @property
    def exact(self) -> bool:
        """Whether the map is the exact Cayley map, so that every rotation is orthogonal."""
        return self.map == "exact"

    @property
    def scale(self) -> float:
        """Factor between the stored parameters and the skew matrix."""
        return 1 / self._divisor if self.scaled else 1.0

    @property
    def _divisor(self) -> float:
        return 2 * math.sqrt(self.block_size - 1)

    @property
    def batch_key(self) -> Hashable:
        """Rotations with equal keys can be computed in one batch: nothing in them depends on the layer."""
        return (self.block_size, self.map, self.terms if not self.exact else 0, self.scaled, self.dtype)

    def within_ball(self, v: Tensor) -> Tensor:
        """The stored parameters ``(..., rows, n)`` after COFT's projection; unchanged without COFT."""
        return v if self.eps is None else project(v, coft_radius(self.eps, v.shape[-2]) / self.scale)

    def vector(self, v: Tensor) -> Tensor:
        """The packed skew blocks ``(..., rows, n)`` of stored parameters: scaled, projected, at least float32."""
        # Numbers of one byte have no promotion in torch.
        v = self.within_ball(v if v.dtype == torch.float64 else v.float())
        return v / self._divisor if self.scaled else v  # as the tools do that write such files, to the last bit

    def skew(self, v: Tensor) -> Tensor:
        """The skew blocks ``(..., rows, b, b)`` that the map is applied to."""
        return unpack(self.vector(v), self.block_size)

    def rotation(self, v: Tensor) -> Tensor:
        """Rotations of stored parameters: the reference for every faster path.

        Shapes: ``v`` ``(..., rows, b (b - 1) / 2)``, returns ``(..., rows, b, b)`` in float32, or float64 for float64.
        """
        return self.from_skew(self.skew(v))

    def from_skew(self, Q: Tensor, *, plain: bool = False) -> Tensor:
        """Rotations of skew blocks ``(..., b, b)``; ``plain`` in operations that function transforms look through."""
        if self.exact:
            return cayley_plain(Q) if plain else cayley(Q)
        return neumann(Q, self.terms, self.map == "neumann_legacy")
