"""Exact maps of a weight that no layer runs as a rotation: butterflies, finished matrices, scrambled convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from orthotune.errors import AdapterFileError
from orthotune.rotation.cayley import cayley

Side = Literal["in", "out"]

#: What a strength ``s`` other than 1 does in the tool that trained the adapter. ``linear``: ``W + s (W' - W)``.
#: ``rotation``: the rotation is blended with the identity, the scale of the rows stays whole. ``stages``: each stage of
#: a butterfly is blended with the identity; ``first_stage``: only the first one. ``none``: that tool knows no strength,
#: and it means ``linear`` here.
Strength = Literal["linear", "rotation", "stages", "first_stage", "none"]


class WeightTransform(Protocol):
    """What turns the weight of one layer; a ``LayerState`` is one, too."""

    @property
    def strength(self) -> Strength:
        """What strengths other than 1 mean."""

    @property
    def parameters(self) -> int:
        """How many numbers were trained."""

    def apply(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The new weight, in float32 or better.

        Shapes: ``(out, in)`` or ``(out, in, *kernel)`` -> the same. A layer that stores ``(in, out)`` passes the
        transpose.

        Raises:
            AdapterFileError: the adapter does not fit a weight of this shape.
        """


def turn(X: Tensor, R: Tensor) -> Tensor:
    """``X BD(R)ᵀ``: each run of ``b`` columns of ``X`` is multiplied by the transpose of its block.

    Shapes: ``X`` ``(..., n b)``, ``R`` ``(n, b, b)`` or ``(1, b, b)`` for one block that stands for all.

    Example:
        >>> turn(torch.tensor([[1.0, 0.0]]), torch.tensor([[[0.0, -1.0], [1.0, 0.0]]]))
        tensor([[0., 1.]])
    """
    b = R.shape[-1]
    runs = X.reshape(-1, X.shape[-1] // b, b).transpose(0, 1)  # one product for each block, not for each row
    return (runs @ R.mT.to(X.dtype)).transpose(0, 1).reshape(X.shape)


def lifted(weight: Tensor) -> Tensor:
    """The weight in float32, or in float64 if that is what it has; a gradient passes through."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def rows_scaled(matrix: Tensor, scale: Tensor | None) -> Tensor:
    """Each row times its number; the matrix itself when there is no scale.

    Raises:
        AdapterFileError: there are not as many numbers as rows.
    """
    if scale is None:
        return matrix
    if scale.numel() != matrix.shape[0]:
        refuse_misfit(matrix.shape[0], scale.numel(), matrix.shape, "out")
    return matrix * scale.to(matrix.dtype).view(-1, 1)


def blended(W: Tensor, turned: Tensor, scale: Tensor | None, kind: Strength, strength: float) -> Tensor:
    """The turned matrix with its rows scaled, at a strength."""
    if kind == "rotation" and strength != 1:
        turned = torch.lerp(W, turned, strength)
    new = rows_scaled(turned, scale)
    return torch.lerp(W, new, strength) if kind in ("linear", "none") and strength != 1 else new


def refuse_misfit(features: int, needed: int, shape: Sequence[int], side: str) -> None:
    """Raise an AdapterFileError that says which weight the blocks would fit."""
    raise AdapterFileError(
        f"the adapter does not fit a weight of shape {list(shape)}",
        got=f"{features} features on its {side} side",
        needed=f"{needed}",
        do="Name the base that the adapter was trained on",
    )


@dataclass(frozen=True)
class Blocks:
    """``M W`` or ``W Bᵀ`` with finished matrices, orthogonal or not; ``magnitude`` scales the rows after that.

    Shapes: ``matrices`` ``(n, b, b)``, ``magnitude`` ``(out,)``.
    Source: LyCORIS 2.0, ``oft_diag``.
    """

    matrices: Tensor
    side: Side = "out"
    magnitude: Tensor | None = None
    strength: Strength = "rotation"

    @property
    def parameters(self) -> int:
        """How many numbers the file holds."""
        return self.matrices.numel() + (0 if self.magnitude is None else self.magnitude.numel())

    def apply(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The new weight, see :class:`WeightTransform`."""
        W = lifted(weight).flatten(1)
        X = W if self.side == "in" else W.mT
        if X.shape[-1] != self.matrices.shape[0] * self.matrices.shape[-1]:
            refuse_misfit(X.shape[-1], self.matrices.shape[0] * self.matrices.shape[-1], weight.shape, self.side)
        turned = turn(X, self.matrices)
        turned = turned if self.side == "in" else turned.mT
        return blended(W, turned, self.magnitude, self.strength, strength).reshape(weight.shape)


@dataclass(frozen=True)
class Butterfly:
    """A product of block rotations between which the features change places.

    Args:
        skew: the skew matrices of each stage in the order in which they act, ``(m, n, b, b)``, their rotations are
            ``cayley(skew)``; ``n`` may be 1 for one block that stands for all.
        order: which features stage ``i`` gathers, PEFT's permutation or LyCORIS' view.
        side: ``in`` turns ``W Bᵀ``, ``out`` turns ``M W``.
        magnitude: scale of the rows ``(out,)``.
        strength: see :data:`Strength`.
        dims: the number of the weight's dimensions where the file tells it.
        scrambled: the memory of the weight is viewed as ``(fan_in, out)`` with no transposition, its first dimension
            turns, and ``magnitude`` scales the second: what PEFT's BOFT did to convolutions before 0.14, and the
            original oft-control does, there with one stage.

    Source: BOFT, arXiv 2311.06243; PEFT ``tuners/boft/layer.py``; LyCORIS ``modules/boft.py``.
    """

    skew: Tensor
    order: Literal["peft", "lycoris"]
    side: Side
    magnitude: Tensor | None = None
    strength: Strength = "none"
    scrambled: bool = False
    dims: int | None = None

    @property
    def parameters(self) -> int:
        """How many numbers were trained."""
        b = self.skew.shape[-1]
        extra = 0 if self.magnitude is None else self.magnitude.numel()
        return extra + self.skew.shape[0] * self.skew.shape[1] * b * (b - 1) // 2

    def apply(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The new weight, see :class:`WeightTransform`."""
        W = lifted(weight).contiguous()
        W = W.reshape(-1, W.shape[0]).mT if self.scrambled and W.dim() > 2 else W.flatten(1)
        X = W if self.side == "in" else W.mT
        n, b = self.skew.shape[1:3]
        if X.shape[-1] % b or (n > 1 and n * b != X.shape[-1]):
            refuse_misfit(X.shape[-1], n * b, weight.shape, self.side)
        for index, R in enumerate(self._stages(strength).to(X.dtype)):
            places = self._places(index, X.shape[-1]).to(X.device)
            X = turn(X[..., places], R)[..., places.argsort()]
        turned = X if self.side == "in" else X.mT
        new = blended(W, turned, self.magnitude, self.strength, strength)
        return (new.mT if self.scrambled and weight.dim() > 2 else new).reshape(weight.shape)

    def _stages(self, strength: float) -> Tensor:
        R = cayley(self.skew)
        if strength == 1 or self.strength not in ("stages", "first_stage"):
            return R
        blend = torch.lerp(torch.eye(R.shape[-1], dtype=R.dtype, device=R.device).expand_as(R), R, strength)
        return blend if self.strength == "stages" else torch.cat([blend[:1], R[1:]])

    def _places(self, stage: int, features: int) -> Tensor:
        """Which feature comes to each place of the blocks of a stage."""
        b = self.skew.shape[-1]
        if stage == 0 and self.order == "peft":
            return torch.arange(features)
        if features % (b << stage):
            refuse_misfit(features, b << stage, [features], f"{self.side} (stage {stage})")
        if self.order == "lycoris":
            return torch.arange(features).view(-1, 2, (b << stage) // 2).mT.reshape(-1)
        # perm: chunks of half a block, those at even places of a group first; what stands in row r goes to perm[r]
        perm = torch.arange(features).view(-1, 1 << stage, 2, b // 2).transpose(1, 2).reshape(-1)
        return perm.argsort()


@dataclass(frozen=True)
class SplitRows:
    """A fused weight whose runs of rows have an adapter each, as ``to_q``, ``to_k``, ``to_v`` in one projection.

    Args:
        sizes: rows of each part, in order.
        parts: what turns them.

    Source: sd-scripts ``networks/oft_flux.py``.
    """

    sizes: tuple[int, ...]
    parts: tuple[WeightTransform, ...]

    @property
    def strength(self) -> Strength:
        """What strengths other than 1 mean, alike for all parts."""
        return self.parts[0].strength

    @property
    def parameters(self) -> int:
        """How many numbers were trained."""
        return sum(part.parameters for part in self.parts)

    def apply(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The new weight, see :class:`WeightTransform`."""
        if weight.shape[0] != sum(self.sizes):
            refuse_misfit(weight.shape[0], sum(self.sizes), weight.shape, "out")
        pieces = zip(weight.split(list(self.sizes)), self.parts, strict=True)
        return torch.cat([part.apply(piece, strength) for piece, part in pieces])
