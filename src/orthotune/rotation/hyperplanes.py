"""Bounded reflections at one hyperplane in each block."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from orthotune.errors import OrthotuneError
from orthotune.rotation.family import FamilyTransform, Sizes, random_directions, refuse_form, refuse_power
from orthotune.rotation.operator import WRITTEN_OUT, BlockLowRank
from orthotune.rotation.spec import RotationSpec


@dataclass(frozen=True)
class Hyperplanes(FamilyTransform):
    """``M = BD(I - 2 û ûᵀ)`` (variant ``ether``) or ``BD(I - û ûᵀ + v̂ v̂ᵀ)`` (variant ``ether+``), of unit vectors.

    The distance from the identity is bounded for all parameters: 2 for ``ether``, which is orthogonal (each block
    reflects, so that it is never the identity and has no powers), at most 2 for ``ether+``, which is not orthogonal and
    starts from the identity with ``û = v̂``. ``numbers`` are the vectors, one row for each block (``ether+``: two rows,
    ``u`` then ``v``), of any length but 0.

    The published ``ether+`` maps both sides of a weight; here an adapter maps one side. Two adapters, one of each side,
    are the published map.

    Source: ETHER, arXiv 2405.20271, equations 1 and 3.

    Example:
        >>> spec = RotationSpec(transform="hyperplane", variant="ether", block_size=2)
        >>> Hyperplanes(spec, torch.tensor([[1.0, -1.0]])).apply(torch.tensor([[3.0, 4.0]]))
        tensor([[4., 3.]])
    """

    name: ClassVar[str] = "hyperplane"
    variants: ClassVar[tuple[str, ...]] = ("ether+", "ether")

    @classmethod
    def sizes(cls, features: int, spec: RotationSpec) -> Sizes:
        b = spec.block_size
        if not b or features % b:
            raise OrthotuneError(
                f"hyperplanes in blocks of {b}", got=f"{features} features", needed="a divisor of them"
            )
        return Sizes(features, _vectors(spec) * features // b, b, b, features // b)

    @classmethod
    def spec_of_shape(cls, spec: RotationSpec, shape: Sequence[int]) -> RotationSpec:
        if shape[0] % _vectors(spec):
            raise OrthotuneError("two vectors for each block", got=f"{shape[0]} vectors", needed="an even number")
        return replace(spec, block_size=shape[1], rank=0)

    @classmethod
    def fault(cls, spec: RotationSpec, v: Tensor) -> str | None:
        still = int((v.float().norm(dim=-1) == 0).sum())
        return f"{still} vectors of length 0, which have no direction" if still else None

    @classmethod
    def operator_of(
        cls, spec: RotationSpec, v: Tensor, basis: Tensor | None = None, plain: bool = False
    ) -> BlockLowRank:
        vectors = v.unflatten(-2, (-1, _vectors(spec)))
        over = vectors / vectors.square().sum(-1, keepdim=True)
        if _vectors(spec) == 1:
            return BlockLowRank(vectors, -2 * over)
        sign = torch.tensor([[-1.0], [1.0]], dtype=v.dtype, device=v.device)
        return BlockLowRank(vectors, sign * over)

    @classmethod
    def written_out(cls, spec: RotationSpec, trained: bool) -> bool:
        return not trained and spec.block_size <= WRITTEN_OUT

    @classmethod
    def factors_of(cls, spec: RotationSpec, v: Tensor, basis: Tensor | None = None) -> Tensor:
        made = cls.operator_of(spec, v.double())
        eye = torch.eye(v.shape[-1], dtype=torch.float64, device=v.device)
        return (eye + made.A.mT @ made.B).flatten(0, -3)

    @classmethod
    def power_of(cls, spec: RotationSpec, v: Tensor, t: float, basis: Tensor | None = None) -> BlockLowRank:
        if _vectors(spec) == 1:
            refuse_power(t, "a reflection in each block")
        made = cls.operator_of(spec, v.double())
        span = torch.linalg.qr(made.A.mT).Q.mT
        eye = torch.eye(span.shape[-2], dtype=torch.float64, device=v.device)
        values, vectors = torch.linalg.eigh(eye + (span @ made.A.mT) @ (made.B @ span.mT))
        if bool((values <= 1e-9).any()):
            refuse_power(t, "orthogonal vectors in a block, which map one direction to 0")
        moved = (vectors * values.pow(t).unsqueeze(-2)) @ vectors.mT - eye
        return BlockLowRank(span.to(v.dtype), (moved @ span).to(v.dtype))

    @classmethod
    def numbers_at(cls, spec: RotationSpec, v: Tensor, t: float, basis: Tensor | None = None) -> Tensor:
        what = "a reflection in each block" if _vectors(spec) == 1 else "ether+, whose powers change a block's trace"
        refuse_form(t, what)

    @classmethod
    def start(cls, spec: RotationSpec, weight: Tensor, identity: bool) -> None:
        random_directions(weight, repeat=_vectors(spec) if identity else 1)

    @classmethod
    def refuse_start(cls, spec: RotationSpec, identity: bool) -> str | None:
        return "the variant 'ether': a reflection is never the identity" if identity and _vectors(spec) == 1 else None

    @classmethod
    def orthogonal_of(cls, spec: RotationSpec) -> bool:
        return _vectors(spec) == 1


def _vectors(spec: RotationSpec) -> int:
    return 1 if spec.variant == "ether" else 2
