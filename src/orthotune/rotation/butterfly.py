"""Butterflies: a product of block rotations between which the features change places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from orthotune.errors import OrthotuneError
from orthotune.rotation.cayley import cayley
from orthotune.rotation.frozen import Blocks
from orthotune.rotation.geodesic import planes_of_skew
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
from orthotune.rotation.spec import Side


@dataclass(frozen=True)
class Butterfly:
    """A product of block rotations with permutations of the features between them.

    Args:
        skew: the skew matrices of each stage in the order in which they act, ``(m, n, b, b)``, their rotations are
            ``cayley(skew)``; ``n`` may be 1 for one block that is used everywhere.
        order: which features stage ``i`` gathers, PEFT's permutation or LyCORIS' view.
        side: ``in`` gives ``W Mᵀ``, ``out`` gives ``M W``.
        magnitude: scale of the rows ``(out,)``.
        blend: see :data:`~orthotune.rotation.on_weight.Blend`.
        dims: the number of the weight's dimensions where the file says it.
        legacy_conv: the memory of the weight is viewed as ``(fan_in, out)`` with no transposition, its first dimension
            is rotated, and ``magnitude`` scales the second: what PEFT's BOFT did to convolutions before 0.14, and the
            original oft-control does, there with one stage.
        backwards: the inverse: the stages act from the last to the first, each transposed.

    Source: BOFT, arXiv 2311.06243; PEFT ``tuners/boft/layer.py``; LyCORIS ``modules/boft.py``.
    """

    skew: Tensor
    order: Literal["peft", "lycoris"]
    side: Side
    magnitude: Tensor | None = None
    blend: Blend = "none"
    legacy_conv: bool = False
    dims: int | None = None
    backwards: bool = False

    #: every stage is a Cayley map
    orthogonal = True
    parameter_shapes = staticmethod(Blocks.parameter_shapes)

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        b = self.skew.shape[-1]
        extra = 0 if self.magnitude is None else self.magnitude.numel()
        return extra + self.skew.shape[0] * self.skew.shape[1] * b * (b - 1) // 2

    @property
    def kernel(self) -> KernelNeeds:
        """What a kernel of its products needs."""
        return KernelNeeds(self.skew.shape[-1], self.skew.dtype, self.skew.shape[0])

    def factors(self) -> Iterator[tuple[str, Tensor]]:
        """The rotations of every stage."""
        for index, R in enumerate(cayley(self.skew)):
            yield f"stage {index}", R

    def rows(self, X: Tensor, back: bool = False, strength: float = 1.0) -> Tensor:
        """``X Mᵀ``, or ``X M``; ``(..., features)``. A strength acts on the stages where the tool blends those."""
        back = back != self.backwards
        stages = list(enumerate(self._stages(strength).to(X.dtype)))
        for index, R in reversed(stages) if back else stages:
            places = self._places(index, X.shape[-1]).to(X.device)
            X = rotate_blocks(X[..., places], R.mT if back else R)[..., places.argsort()]
        return X

    def act(self, x: Tensor) -> Tensor:
        """The layer's input or output, mapped; see :func:`~orthotune.rotation.on_weight.on_features`."""
        if self.legacy_conv:
            refuse_action("a map of a convolution's memory, which mixes inputs with outputs")
        self._check(x.shape[-1], x.shape)
        return on_features(self.rows, self.side, self.magnitude, x)

    def apply(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The new weight, see :class:`~orthotune.rotation.frozen.FrozenMap`."""
        W = lifted(weight).contiguous()
        legacy_conv = self.legacy_conv and W.dim() > 2
        W = W.reshape(-1, W.shape[0]).mT if legacy_conv else W.flatten(1)
        self._check(W.shape[1 if self.side == "in" else 0], weight.shape)
        rotated = self.rows(W, False, strength) if self.side == "in" else self.rows(W.mT, False, strength).mT
        new = at_strength(W, rotated, self.magnitude, self.blend, strength)
        return (new.mT if legacy_conv else new).reshape(weight.shape)

    def inverse(self) -> Butterfly:
        """The map that undoes this one.

        Raises:
            OrthotuneError: the rows are scaled, too.
        """
        refuse_scale(self.magnitude, "an inverse")
        return replace(self, backwards=not self.backwards)

    def power(self, t: float) -> Butterfly | Blocks:
        """``M^t`` for a single stage, and for any number of stages where ``t`` is 0, 1 or -1.

        Raises:
            OrthotuneError: the rows are scaled, too; or the power of a product, which is no product of such stages.
        """
        if t == 1:
            return self
        refuse_scale(self.magnitude, f"a power of {t:g}")
        if t == -1:
            return self.inverse()
        if t == 0:
            return replace(self, skew=torch.zeros_like(self.skew))
        if self.skew.shape[0] > 1 or self.legacy_conv:
            raise OrthotuneError(
                f"a power of {t:g}", got="a product of several stages", needed="one stage, or the power 0, 1 or -1",
                do="Blend the weights linearly",
            )  # fmt: skip
        R = planes_of_skew(self.skew[0]).power(-t if self.backwards else t)
        return Blocks(R.to(self.skew.dtype), self.side, None, self.blend)

    def _check(self, features: int, shape: Sequence[int]) -> None:
        n, b = self.skew.shape[1:3]
        if features % b or (n > 1 and n * b != features):
            refuse_misfit(features, n * b, shape, self.side)

    def _stages(self, strength: float) -> Tensor:
        R = cayley(self.skew)
        if strength == 1 or self.blend not in ("stages", "first_stage"):
            return R
        mixed = torch.lerp(torch.eye(R.shape[-1], dtype=R.dtype, device=R.device).expand_as(R), R, strength)
        return mixed if self.blend == "stages" else torch.cat([mixed[:1], R[1:]])

    def _places(self, stage: int, features: int) -> Tensor:
        """Which feature comes to each place of the blocks of a stage."""
        b = self.skew.shape[-1]
        if stage == 0 and self.order == "peft":
            return torch.arange(features)
        if features % (b << stage):
            refuse_misfit(features, b << stage, [features], f"{self.side} (stage {stage})")
        if self.order == "lycoris":
            return torch.arange(features).view(-1, 2, (b << stage) // 2).mT.reshape(-1)
        # perm: chunks of half a block, those at even places of a group first; row r goes to place perm[r]
        perm = torch.arange(features).view(-1, 1 << stage, 2, b // 2).transpose(1, 2).reshape(-1)
        return perm.argsort()
