"""Products of Householder reflections, computed as one matrix of low rank beside the identity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from orthotune.errors import OrthotuneError
from orthotune.rotation.family import (
    FamilyTransform,
    Sizes,
    power_within_span,
    random_directions,
    refuse_form,
    refuse_power,
    within_span,
)
from orthotune.rotation.geodesic import reflection_pairs
from orthotune.rotation.operator import LowRank
from orthotune.rotation.spec import RotationSpec

GRAM_SCHMIDT = "gram_schmidt"


@dataclass(frozen=True)
class Reflections(FamilyTransform):
    """``W' = W H_1 .. H_r`` (``side="in"``) or ``W' = (H_1 .. H_r)ᵀ W``, with ``H_i = I - 2 u_i u_iᵀ / |u_i|²``.

    In the compact WY form ``H_1 .. H_r = I - Uᵀ T U`` for the vectors in the rows of ``U`` and the upper triangular
    ``T`` with ``T⁻¹ = triu(U Uᵀ)``, its diagonal halved: the cost is that of two products ``n x r`` and one triangular
    solve ``r x r``, for vectors of any length. ``numbers`` are the vectors ``(r, n)``. The determinant is ``(-1)^r``.

    With the variant ``gram_schmidt`` the vectors are made orthogonal first: ``I - 2 P`` for the projection ``P`` on
    their span.

    Source: HRA, arXiv 2405.17484, equation 4; PEFT ``tuners/hra/layer.py``, ``hra_u`` and ``apply_GS``; compact WY:
    Joffrain et al. 2006, "Accumulating Householder transformations, revisited".

    Example:
        >>> swap = Reflections(RotationSpec(transform="reflections", rank=1), torch.tensor([[1.0, -1.0]]))
        >>> swap.apply(torch.tensor([[3.0, 4.0]]))
        tensor([[4., 3.]])
    """

    name: ClassVar[str] = "reflections"
    variants: ClassVar[tuple[str, ...]] = ("", GRAM_SCHMIDT)
    ranked: ClassVar[bool] = True
    default_rank: ClassVar[int] = 8

    @classmethod
    def sizes(cls, features: int, spec: RotationSpec) -> Sizes:
        if not 0 < spec.rank <= features:
            raise OrthotuneError(f"{spec.rank} reflections", got=f"{features} features", needed=f"1 to {features}")
        return Sizes(features, spec.rank, features, block_count=spec.rank)

    @classmethod
    def spec_of_shape(cls, spec: RotationSpec, shape: Sequence[int]) -> RotationSpec:
        found = replace(spec, rank=shape[0], block_size=0)
        cls.sizes(shape[1], found)
        return found

    @classmethod
    def fault(cls, spec: RotationSpec, v: Tensor) -> str | None:
        still = int((v.float().norm(dim=-1) == 0).sum())
        return f"{still} vectors of length 0, which have no direction" if still else None

    @classmethod
    def operator_of(cls, spec: RotationSpec, v: Tensor, basis: Tensor | None = None, plain: bool = False) -> LowRank:
        with torch.autocast(v.device.type, enabled=False):
            gram = v @ v.mT
            if spec.variant == GRAM_SCHMIDT:
                # Halved, the full Gram matrix is the inverse of twice that of the projection on the span.
                return LowRank(v, -torch.linalg.solve(gram / 2, v))
            half = gram.tril(-1) + torch.diag_embed(gram.diagonal(dim1=-2, dim2=-1) / 2)
            return LowRank(v, -torch.linalg.solve_triangular(half, v, upper=False))

    @classmethod
    def factors_of(cls, spec: RotationSpec, v: Tensor, basis: Tensor | None = None) -> Tensor:
        stack = v.view(-1, spec.rank, v.shape[-1]).double()
        return torch.stack([within_span(cls.operator_of(spec, one))[1] for one in stack])

    @classmethod
    def power_of(cls, spec: RotationSpec, v: Tensor, t: float, basis: Tensor | None = None) -> LowRank:
        made = cls.operator_of(spec, v.double())
        found = power_within_span(made, t, f"a product of {spec.rank} reflections")
        return LowRank(found.A.to(v.dtype), found.B.to(v.dtype))

    @classmethod
    def numbers_at(cls, spec: RotationSpec, v: Tensor, t: float, basis: Tensor | None = None) -> Tensor:
        if spec.variant == GRAM_SCHMIDT or spec.rank % 2:
            refuse_form(t, f"{spec.rank} reflections{' on orthogonal vectors' * (spec.variant == GRAM_SCHMIDT)}")
        found = []
        for one in v.view(-1, spec.rank, v.shape[-1]):
            span, small = within_span(cls.operator_of(spec, one.double()))
            if bool(torch.linalg.det(small) < 0):  # vectors that repeat each other
                refuse_power(t, f"a product of {spec.rank} reflections, whose determinant is -1")
            found.append(reflection_pairs(small, t) @ span * one.double().norm(dim=-1).mean())
        return torch.cat(found)

    @classmethod
    def start(cls, spec: RotationSpec, weight: Tensor, identity: bool) -> None:
        random_directions(weight, repeat=2 if identity else 1)

    @classmethod
    def refuse_start(cls, spec: RotationSpec, identity: bool) -> str | None:
        if identity and spec.variant == GRAM_SCHMIDT:
            return "reflections on orthogonal vectors, which are never the identity"
        if identity and spec.rank % 2:
            return f"{spec.rank} reflections: a product of an odd number of them is never the identity"
        return None
