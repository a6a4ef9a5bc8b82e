"""Exact, frozen maps of a weight, for content of adapter files that no layer can train as a rotation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from orthotune.rotation.geodesic import planes
from orthotune.rotation.measure import orthogonality_error
from orthotune.rotation.on_weight import (
    Blend,
    KernelNeeds,
    at_strength,
    lifted,
    on_features,
    refuse_action,
    refuse_misfit,
    refuse_scale,
    rotate_blocks,
)
from orthotune.rotation.spec import RotationSpec, Side

#: blocks farther from orthogonal than this are not called rotations
_ORTHOGONAL = 1e-4


class FrozenMap(Protocol):
    """What changes the weight of one layer, as a file holds it; a ``LayerState`` is one, too."""

    @property
    def side(self) -> Side:
        """Whether the inputs or the outputs are mapped."""

    @property
    def blend(self) -> Blend:
        """What strengths other than 1 mean."""

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""

    def factors(self) -> Iterator[tuple[str, Tensor]]:
        """Name and matrices ``(n, b, b)`` of every factor; those of a butterfly act one after the other."""

    def apply(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The new weight, in float32 or better.

        Shapes: ``(out, in)`` or ``(out, in, *kernel)`` -> the same. A layer that stores ``(in, out)`` passes the
        transpose.

        Raises:
            AdapterFileError: the adapter does not fit a weight of this shape.
        """


@dataclass(frozen=True)
class Blocks:
    """``M W`` or ``W Mᵀ`` with dense blocks, orthogonal or not; ``magnitude`` scales the rows after that.

    Shapes: ``matrices`` ``(n, b, b)``, ``magnitude`` ``(out,)``. ``shared``: one matrix is used for all blocks.
    Source: LyCORIS 2.0, ``oft_diag``.

    Example:
        >>> quarter = Blocks(torch.tensor([[[0.0, -1.0], [1.0, 0.0]]]), side="in")
        >>> quarter.act(torch.tensor([1.0, 0.0])), quarter.inverse().act(torch.tensor([1.0, 0.0]))
        (tensor([ 0., -1.]), tensor([0., 1.]))
    """

    matrices: Tensor
    side: Side = "out"
    magnitude: Tensor | None = None
    blend: Blend = "rotation"
    shared: bool = False

    @staticmethod
    def parameter_shapes(features: int, spec: RotationSpec) -> dict[str, tuple[int, ...]]:
        """None: nothing in it is trained."""
        return {}

    @property
    def parameters(self) -> int:
        """Number of parameters in the file."""
        return self.matrices.numel() + (0 if self.magnitude is None else self.magnitude.numel())

    @property
    def orthogonal(self) -> bool:
        """Whether every block is orthogonal, to rounding."""
        return bool((orthogonality_error(self.matrices) < _ORTHOGONAL * self.matrices.shape[-1] ** 0.5).all())

    @property
    def kernel(self) -> KernelNeeds:
        """What a kernel of its product needs."""
        return KernelNeeds(self.matrices.shape[-1], self.matrices.dtype)

    def factors(self) -> Iterator[tuple[str, Tensor]]:
        """The matrices."""
        yield "", self.matrices

    def rows(self, X: Tensor, back: bool = False) -> Tensor:
        """``X Mᵀ``, or ``X M``; ``(..., features)``."""
        return rotate_blocks(X, self.matrices.mT if back else self.matrices)

    def act(self, x: Tensor) -> Tensor:
        """The layer's input or output, mapped; see :func:`~orthotune.rotation.on_weight.on_features`."""
        self._check(x.shape[-1], x.shape)
        return on_features(self.rows, self.side, self.magnitude, x)

    def apply(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The new weight, see :class:`FrozenMap`."""
        W = lifted(weight).flatten(1)
        self._check(W.shape[1 if self.side == "in" else 0], weight.shape)
        rotated = self.rows(W) if self.side == "in" else self.rows(W.mT).mT
        return at_strength(W, rotated, self.magnitude, self.blend, strength).reshape(weight.shape)

    def _check(self, features: int, shape: Sequence[int]) -> None:
        needed = self.matrices.shape[0] * self.matrices.shape[-1]
        if features % needed if self.shared else features != needed:
            refuse_misfit(features, needed, shape, self.side)

    def inverse(self) -> Blocks:
        """The map that undoes this one.

        Raises:
            OrthotuneError: the rows are scaled, too.
        """
        refuse_scale(self.magnitude, "an inverse")
        return replace(self, matrices=torch.linalg.inv(self.matrices))

    def power(self, t: float) -> Blocks:
        """``M^t``: every plane by ``t`` times its angle.

        Raises:
            OrthotuneError: the rows are scaled, too; or a block is no rotation, whose powers are not defined.
        """
        if t == 1:
            return self
        refuse_scale(self.magnitude, f"a power of {t:g}")
        return replace(self, matrices=planes(self.matrices).power(t).to(self.matrices.dtype))


@dataclass(frozen=True)
class SplitRows:
    """A fused weight whose runs of rows have an adapter each, as ``to_q``, ``to_k``, ``to_v`` in one projection.

    Args:
        sizes: rows of each part, in order.
        parts: what maps them, all on one side.

    Source: sd-scripts ``networks/oft_flux.py``.
    """

    sizes: tuple[int, ...]
    parts: tuple[FrozenMap, ...]

    #: each part has its own
    kernel = None
    parameter_shapes = staticmethod(Blocks.parameter_shapes)

    @property
    def side(self) -> Side:
        """The side of all parts."""
        return self.parts[0].side

    @property
    def blend(self) -> Blend:
        """What strengths other than 1 mean, alike for all parts."""
        return self.parts[0].blend

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return sum(part.parameters for part in self.parts)

    @property
    def orthogonal(self) -> bool:
        """Whether every part is."""
        return all(bool(getattr(part, "orthogonal", False)) for part in self.parts)

    def factors(self) -> Iterator[tuple[str, Tensor]]:
        """Those of all parts."""
        for index, part in enumerate(self.parts):
            for name, R in part.factors():
                yield f"split {index}{name}", R

    def act(self, x: Tensor) -> Tensor:
        """The layer's output, mapped: runs of outputs have a map each, and the input of them all is one."""
        if self.side == "in":
            refuse_action("a map of the inputs for each run of outputs")
        if x.shape[-1] != sum(self.sizes):
            refuse_misfit(x.shape[-1], sum(self.sizes), x.shape, self.side)
        parts: tuple[Any, ...] = self.parts
        pieces = zip(x.split(list(self.sizes), -1), parts, strict=True)
        return torch.cat([part.act(piece) for piece, part in pieces], -1)

    def apply(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The new weight, see :class:`FrozenMap`."""
        if weight.shape[0] != sum(self.sizes):
            refuse_misfit(weight.shape[0], sum(self.sizes), weight.shape, "out")
        pieces = zip(weight.split(list(self.sizes)), self.parts, strict=True)
        return torch.cat([part.apply(piece, strength) for piece, part in pieces])

    def inverse(self) -> SplitRows:
        """The map that undoes this one."""
        parts: tuple[Any, ...] = self.parts
        return replace(self, parts=tuple(part.inverse() for part in parts))

    def power(self, t: float) -> SplitRows:
        """Each part's."""
        parts: tuple[Any, ...] = self.parts
        return replace(self, parts=tuple(part.power(t) for part in parts))
