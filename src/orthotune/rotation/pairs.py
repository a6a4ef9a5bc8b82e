"""Planes of two features: rotations by one angle each, with or without scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from orthotune.errors import BlockSizeError, OrthotuneError
from orthotune.rotation.blocks import divisors
from orthotune.rotation.family import FamilyTransform, Sizes, refuse_power
from orthotune.rotation.operator import WRITTEN_OUT, Pairs
from orthotune.rotation.spec import RotationSpec

#: variant -> angles (and scales) for each feature: one for a plane, one for a feature, two for a feature
_SHARE = {"angles": 0.5, "road_1": 0.5, "road_2": 1, "road_4": 2}


@dataclass(frozen=True)
class PairedPlanes(FamilyTransform):
    """``y_1' = a cos(θ) y_1 - a sin(θ) y_2``, ``y_2' = a cos(θ) y_2 + a sin(θ) y_1`` in planes of two features.

    In each group of ``block_size`` features, feature ``i`` forms a plane with ``i + block_size / 2``. Variants:

    - ``angles``: one angle for a plane and no scale; the only one that is orthogonal for all parameters.
    - ``road_1``: one angle and one scale ``a`` for a plane: a rotation times a scale.
    - ``road_2``: one angle and one scale for each feature, that is for each row of the plane's matrix.
    - ``road_4``: two of each for a feature: one for the diagonal of the matrix, one for what is beside it.

    ``numbers`` are the angles and, in a second row, the scales minus 1, so that 0 is the identity. For powers the
    angles and the logarithms of the scales are multiplied; ``road_2`` and ``road_4`` have none.

    Source: RoAd, arXiv 2409.00119, equation 4; PEFT ``tuners/road/layer.py``.

    Example:
        >>> spec = RotationSpec(transform="planes", variant="road_1", block_size=2, side="out")
        >>> quarter = PairedPlanes(spec, torch.tensor([[torch.pi / 2], [1.0]]))
        >>> quarter.act(torch.tensor([3.0, 4.0])).round()
        tensor([-8.,  6.])
    """

    name: ClassVar[str] = "planes"
    variants: ClassVar[tuple[str, ...]] = tuple(_SHARE)

    @classmethod
    def sizes(cls, features: int, spec: RotationSpec) -> Sizes:
        b = spec.block_size
        if not b or b % 2 or features % b:
            raise OrthotuneError(
                f"planes in groups of {b}", got=f"{features} features", needed="an even divisor of them"
            )
        elements = int(features * _SHARE[_variant(spec)])
        return Sizes(features, 1 if _variant(spec) == "angles" else 2, elements, b, features // b)

    @classmethod
    def choose(cls, spec: RotationSpec, features: int, r: int, fallback: str, layer: str) -> tuple[RotationSpec, bool]:
        wanted = -(-features // r) if r else spec.block_size
        known = [d for d in divisors(features) if d % 2 == 0]
        if known and (fallback == "nearest" or (wanted in known and (not r or wanted * r == features))):
            found = min(known, key=lambda d: (abs(d - wanted), d))
            return replace(spec, block_size=found), found != wanted
        raise BlockSizeError(
            f"groups of {wanted} for the planes of layer '{layer}'", got=f"{features} features",
            needed=f"one of {known}" if known else "an even number of features",
            do='Pass one of them, exclude the layer, or set block_size_fallback="nearest"',
        )  # fmt: skip

    @classmethod
    def features_of(cls, spec: RotationSpec, shape: Sequence[int]) -> int:
        """The number of features that stored parameters of this shape map; the size of their groups is not in it."""
        return round(shape[1] / _SHARE[_variant(spec)])

    @classmethod
    def spec_of_shape(cls, spec: RotationSpec, shape: Sequence[int]) -> RotationSpec:
        features = cls.features_of(spec, shape)
        if tuple(shape) != cls.sizes(features, spec).shape:
            raise OrthotuneError("planes", got=f"shape {list(shape)}", needed=f"the variant {_variant(spec)}")
        return replace(spec, rank=0)

    @classmethod
    def operator_of(cls, spec: RotationSpec, v: Tensor, basis: Tensor | None = None, plain: bool = False) -> Pairs:
        return _pairs(spec, v)

    @classmethod
    def written_out(cls, spec: RotationSpec, trained: bool) -> bool:
        # In training two numbers a feature keep less and were not slower than blocks.
        return not trained and spec.block_size <= WRITTEN_OUT

    @classmethod
    def factors_of(cls, spec: RotationSpec, v: Tensor, basis: Tensor | None = None) -> Tensor:
        made = _pairs(spec, v.view(-1, cls.sizes(cls._features(spec, v), spec).rows, v.shape[-1]))
        (c1, c2), (d1, d2) = (part.flatten(0, -3).unbind(-2) for part in (made.c, made.d))
        return torch.stack([torch.stack([c1, d1], -1), torch.stack([d2, c2], -1)], -2).flatten(0, -3)

    @classmethod
    def power_of(cls, spec: RotationSpec, v: Tensor, t: float, basis: Tensor | None = None) -> Pairs:
        moved = cls.numbers_at(spec, v, t).to(v.dtype)
        scale = torch.ones_like(moved[0]) if _variant(spec) == "angles" else 1 + moved[1]
        return _of_rows(spec, moved[0], scale)

    @classmethod
    def numbers_at(cls, spec: RotationSpec, v: Tensor, t: float, basis: Tensor | None = None) -> Tensor:
        variant = _variant(spec)
        if variant in ("road_2", "road_4"):
            refuse_power(t, f"planes of the variant {variant}, which are no rotations with a scale")
        rows = v.double().view(-1, 1 if variant == "angles" else 2, v.shape[-1])
        theta = torch.remainder(rows[:, :1] + torch.pi, 2 * torch.pi) - torch.pi  # the short way round
        scale = 1 + rows[:, 1:]
        if bool((scale <= 0).any()):
            refuse_power(t, "a scale of 0 or below, which has no logarithm")
        return torch.cat([t * theta, scale**t - 1], 1).view(v.shape)

    @classmethod
    def orthogonal_of(cls, spec: RotationSpec) -> bool:
        return _variant(spec) == "angles"

    @staticmethod
    def _features(spec: RotationSpec, v: Tensor) -> int:
        return round(v.shape[-1] / _SHARE[_variant(spec)])


def _variant(spec: RotationSpec) -> str:
    return spec.variant or "angles"


def _pairs(spec: RotationSpec, v: Tensor) -> Pairs:
    theta = v[..., 0, :]
    return _of_rows(spec, theta, torch.ones_like(theta) if _variant(spec) == "angles" else 1 + v[..., 1, :])


def _of_rows(spec: RotationSpec, theta: Tensor, scale: Tensor) -> Pairs:
    """``M`` for output columns, ``y' = M y``; what ``x M`` is for inputs."""
    half, share = spec.block_size // 2, _SHARE[_variant(spec)]
    if share == 2:  # groups of what is on the diagonal and what is beside it
        theta, scale = (part.unflatten(-1, (-1, 2, 2, half)) for part in (theta, scale))
        diagonal, beside = (scale * theta.cos()).select(-3, 0), (scale * theta.sin()).select(-3, 1)
    else:
        cos, sin = (
            (scale * part).unflatten(-1, (-1, 1 if share < 1 else 2, half)) for part in (theta.cos(), theta.sin())
        )
        diagonal, beside = (part.expand(*part.shape[:-2], 2, half) for part in (cos, sin))
    # Row 1 of the matrix takes -beside_1 of feature 2, row 2 takes beside_2 of feature 1; x M has the columns.
    first, second = beside.unbind(-2)
    return Pairs(diagonal, torch.stack([-first, second], -2))
