"""Rotations of the coordinates of a weight in its leading singular directions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from orthotune.errors import OrthotuneError
from orthotune.rotation.cayley import cayley, cayley_plain
from orthotune.rotation.family import FamilyTransform, Sizes, power_within_span, refuse_form, refuse_power
from orthotune.rotation.geodesic import skew_power
from orthotune.rotation.operator import LowRank, Within
from orthotune.rotation.packing import element_count, pack, unpack
from orthotune.rotation.spec import RotationSpec

#: iterations of the randomised SVD, PEFT's default
ITERATIONS = 10


@dataclass(frozen=True)
class Subspace(FamilyTransform):
    """``W' = W + W Aᵀ (R' - I) A`` for the leading ``r`` right singular vectors of ``W`` in the rows of ``A``.

    Because ``W Aᵀ`` is the matrix of the left singular vectors times the singular values, this is the published map,
    and no other factor than ``A`` is kept; with ``side="out"`` the left singular vectors are rotated instead. Variants:

    - ``rotation``: ``R'`` is a rotation, ``C(Q)ᵀ``: orthogonal for all parameters.
    - ``psoft``: ``R' = diag(b) C(Q)ᵀ diag(a)`` with two trained scales: not orthogonal.
    - ``rotation_lowrank``, ``psoft_lowrank``: the same, with the singular vectors from a randomised SVD.

    ``numbers`` are the packed skew matrix, then ``a - 1`` and ``b - 1``, in one row. ``basis`` is ``A`` ``(r, n)``:
    frozen, and stored with the adapter, because singular vectors have no sign of their own.

    Source: PSOFT, arXiv 2505.11235, equation 6; PEFT ``tuners/psoft/layer.py``, ``psoft_init``. Randomised SVD: Halko,
    Martinsson and Tropp, arXiv 0909.4061.

    Example:
        >>> spec = RotationSpec(transform="subspace", rank=2)
        >>> Subspace(spec, torch.ones(1, 1)).apply(torch.diag(torch.tensor([3.0, 2.0, 1.0]))).abs().round()
        tensor([[0., 3., 0.],
                [2., 0., 0.],
                [0., 0., 1.]])
    """

    name: ClassVar[str] = "subspace"
    variants: ClassVar[tuple[str, ...]] = ("rotation", "psoft", "rotation_lowrank", "psoft_lowrank")
    ranked: ClassVar[bool] = True
    default_rank: ClassVar[int] = 32
    needs_basis: ClassVar[bool] = True

    @classmethod
    def sizes(cls, features: int, spec: RotationSpec) -> Sizes:
        r = spec.rank
        if not 1 < r <= features:
            raise OrthotuneError(f"a subspace of {r} dimensions", got=f"{features} features", needed=f"2 to {features}")
        return Sizes(features, 1, element_count(r) + (2 * r if _scaled(spec) else 0), block_count=r)

    @classmethod
    def spec_of_shape(cls, spec: RotationSpec, shape: Sequence[int]) -> RotationSpec:
        # r (r - 1) / 2 elements, or r (r + 3) / 2 with the scales
        n = shape[1]
        r = (math.isqrt(9 + 8 * n) - 3) // 2 if _scaled(spec) else (1 + math.isqrt(1 + 8 * n)) // 2
        found = replace(spec, rank=r, block_size=0)
        if r < 2 or shape[0] != 1 or cls.sizes(r, found).elements != n:
            raise OrthotuneError(
                "a subspace", got=f"shape {list(shape)}", needed=f"one row for the variant {_name(spec)}"
            )
        return found

    @classmethod
    def basis_of(cls, spec: RotationSpec, weight: Tensor) -> Tensor:
        """``A`` of a weight ``(..., out, in)``: ``(..., r, features)``, in float32 or better."""
        W = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
        W = W if spec.side == "in" else W.mT
        if spec.rank > min(W.shape[-2:]):
            raise OrthotuneError(
                f"a subspace of {spec.rank} dimensions", got=f"a weight of shape {list(weight.shape)}",
                needed=f"at most {min(W.shape[-2:])}, the number of its singular vectors",
            )  # fmt: skip
        if not _name(spec).endswith("_lowrank"):
            found: Tensor = torch.linalg.svd(W, full_matrices=False).Vh[..., : spec.rank, :]
            return found.contiguous()
        devices = [] if W.device.type == "cpu" else [W.device]
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(0)
            return torch.svd_lowrank(W, q=spec.rank, niter=ITERATIONS)[2].mT.contiguous()

    @classmethod
    def operator_of(cls, spec: RotationSpec, v: Tensor, basis: Tensor | None = None, plain: bool = False) -> Within:
        if basis is None:
            raise OrthotuneError(
                "a subspace without its basis", got="an adapter whose file holds none",
                needed="the weight, whose singular vectors are the basis", do="Load it on its base, or name --base",
            )  # fmt: skip
        return Within(basis, cls._within(spec, v, plain))

    @classmethod
    def _within(cls, spec: RotationSpec, v: Tensor, plain: bool = False) -> Tensor:
        """``R'ᵀ``, ``(..., r, r)``."""
        r, count = spec.rank, element_count(spec.rank)
        Q = unpack(v[..., 0, :count], r)
        R = cayley_plain(Q) if plain else cayley(Q)
        if not _scaled(spec):
            return R
        a, b = 1 + v[..., 0, count : count + r], 1 + v[..., 0, count + r :]
        return a.unsqueeze(-1) * R * b.unsqueeze(-2)

    @classmethod
    def factors_of(cls, spec: RotationSpec, v: Tensor, basis: Tensor | None = None) -> Tensor:
        return cls._within(spec, v.view(-1, 1, v.shape[-1]).double())

    @classmethod
    def power_of(cls, spec: RotationSpec, v: Tensor, t: float, basis: Tensor | None = None) -> LowRank:
        if _scaled(spec):
            refuse_power(t, "a rotation between two scales, whose powers have another form")
        return power_within_span(cls.operator_of(spec, v, basis).low_rank, t, "a subspace")

    @classmethod
    def numbers_at(cls, spec: RotationSpec, v: Tensor, t: float, basis: Tensor | None = None) -> Tensor:
        if _scaled(spec):
            refuse_form(t, "a rotation between two scales")
        return pack(skew_power(unpack(v.double(), spec.rank), t))

    @classmethod
    def orthogonal_of(cls, spec: RotationSpec) -> bool:
        return not _scaled(spec)


def _name(spec: RotationSpec) -> str:
    return spec.variant or "rotation"


def _scaled(spec: RotationSpec) -> bool:
    return _name(spec).startswith("psoft")
