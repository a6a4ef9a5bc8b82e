"""Butterflies that are trained: a product of block rotations between which the features change places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from orthotune.errors import BlockSizeError, OrthotuneError
from orthotune.rotation.blocks import divisors
from orthotune.rotation.butterfly import Butterfly
from orthotune.rotation.cayley import cayley, cayley_plain
from orthotune.rotation.family import FamilyTransform, Sizes, recomputed, refuse_form, refuse_power
from orthotune.rotation.geodesic import planes, planes_of_skew, skew_power
from orthotune.rotation.operator import Chain, Operator, Stage
from orthotune.rotation.packing import block_size_of, element_count, pack, unpack
from orthotune.rotation.spec import RotationSpec

#: Largest block that stages are multiplied out to: one product of these is quicker than one for each stage with the
#: features moved between them, and only its input has to be kept for a backward.
LARGEST_BLOCK = 64

#: Largest block of a product of stages that is taken apart into planes for a power, in the time of its third power:
#: a block of 1,024 takes some seconds of one core.
LARGEST_POWER = 1024


@dataclass(frozen=True)
class Stages(FamilyTransform):
    """``Mᵀ = B_m .. B_1`` on columns: ``m = factors`` stages of block rotations ``C(Q)``, PEFT's permutation between.

    Stage ``i`` (from 0) rotates blocks of which half lies ``2^i / 2`` blocks away: with ``log2`` of the number of
    blocks plus one stages every output depends on every input. One stage is the same as plain blocks.
    ``numbers`` are the packed skew blocks ``(m n / b, b (b - 1) / 2)``, stage after stage. ``M^t`` of a product is
    the geodesic of the product: every plane of its blocks of ``2^(m-1) b`` features rotates by ``t`` times its angle.
    It is no product of stages, except where ``t`` is 0, 1 or -1, so that a power cannot be stored as a butterfly.

    Source: BOFT, arXiv 2311.06243, equation 5; PEFT ``tuners/boft/layer.py``.

    Example:
        >>> import torch
        >>> spec = RotationSpec(transform="butterfly", block_size=2, factors=2)
        >>> Stages(spec, torch.ones(4, 1)).apply(torch.eye(4)).abs()
        tensor([[0., 0., 0., 1.],
                [0., 0., 1., 0.],
                [0., 1., 0., 0.],
                [1., 0., 0., 0.]])
    """

    name: ClassVar[str] = "butterfly"
    default_factors: ClassVar[int] = 2

    @classmethod
    def sizes(cls, features: int, spec: RotationSpec) -> Sizes:
        b, m = spec.block_size, spec.factors
        if not _fits(features, b, m):
            raise OrthotuneError(f"{m} stages of blocks of {b}", got=f"{features} features", needed=_needed(m))
        return Sizes(features, m * features // b, element_count(b), b, features // b)

    @classmethod
    def choose(cls, spec: RotationSpec, features: int, r: int, fallback: str, layer: str) -> tuple[RotationSpec, bool]:
        wanted = -(-features // r) if r else spec.block_size
        known = [d for d in divisors(features) if _fits(features, d, spec.factors)]
        if known and (fallback == "nearest" or (wanted in known and (not r or wanted * r == features))):
            found = min(known, key=lambda d: (abs(d - wanted), d))
            return replace(spec, block_size=found), found != wanted
        size = f"r={r}" if r else f"block_size={wanted}"
        raise BlockSizeError(
            f"{size} with {spec.factors} stages for layer '{layer}'", got=f"{features} features",
            needed=f"one of the block sizes {known}" if known else f"features that fit: {_needed(spec.factors)}",
            do="Pass one of them or fewer factors, give the layer its own size in block_size_pattern, exclude the "
            'layer, or set block_size_fallback="nearest"',
        )  # fmt: skip

    @classmethod
    def spec_of_shape(cls, spec: RotationSpec, shape: Sequence[int]) -> RotationSpec:
        b = block_size_of(shape[1])
        if shape[0] % spec.factors or not _fits(shape[0] * b // spec.factors, b, spec.factors):
            raise OrthotuneError(
                f"{spec.factors} stages", got=f"{shape[0]} blocks of {b}", needed=_needed(spec.factors)
            )
        return replace(spec, block_size=b, rank=0)

    @classmethod
    def operator_of(cls, spec: RotationSpec, v: Tensor, basis: Tensor | None = None, plain: bool = False) -> Operator:
        Q = unpack(v, spec.block_size)
        R = (cayley_plain(Q) if plain else cayley(Q)).unflatten(-3, (spec.factors, -1))
        if spec.factors == 1 or not cls.written_out(spec, trained=True):
            return _chain(R)
        return Stage(_multiplied_out(R) if plain else recomputed(_multiplied_out, R))

    @classmethod
    def written_out(cls, spec: RotationSpec, trained: bool) -> bool:
        return spec.factors == 1 or spec.block_size << (spec.factors - 1) <= LARGEST_BLOCK

    @classmethod
    def factors_of(cls, spec: RotationSpec, v: Tensor, basis: Tensor | None = None) -> Tensor:
        return cayley(unpack(v, spec.block_size)).flatten(0, -3)

    @classmethod
    def power_of(cls, spec: RotationSpec, v: Tensor, t: float, basis: Tensor | None = None) -> Operator:
        Q = unpack(v.double(), spec.block_size)
        if spec.factors == 1:
            return Stage(planes_of_skew(Q).power(t).to(v.dtype))
        if spec.block_size << (spec.factors - 1) > LARGEST_POWER:
            refuse_power(t, f"a product of {spec.factors} stages that mixes more than {LARGEST_POWER} features")
        # Powers of single stages would be another path: stages do not commute, and the product of them is no power.
        return Stage(planes(_multiplied_out(cayley(Q).unflatten(-3, (spec.factors, -1)))).power(t).to(v.dtype))

    @classmethod
    def powers_are_blocks(cls, spec: RotationSpec) -> bool:
        return spec.factors > 1

    @classmethod
    def blocks_of(cls, spec: RotationSpec, v: Tensor, basis: Tensor | None = None) -> Tensor:
        if spec.block_size << (spec.factors - 1) > LARGEST_POWER:
            refuse_form(0.5, f"a product of {spec.factors} stages that mixes more than {LARGEST_POWER} features")
        return _multiplied_out(cayley(unpack(v, spec.block_size)).unflatten(-3, (spec.factors, -1)))

    @classmethod
    def numbers_at(cls, spec: RotationSpec, v: Tensor, t: float, basis: Tensor | None = None) -> Tensor:
        if spec.factors > 1:
            refuse_form(t, f"a product of {spec.factors} stages")
        return pack(skew_power(unpack(v.double(), spec.block_size), t))


def _chain(R: Tensor) -> Operator:
    """The stages of ``(..., stages, n / b, b, b)``, the last one first."""
    stages = [Stage(R.select(-4, index), 1 << index) for index in range(R.shape[-4])]
    return stages[0] if len(stages) == 1 else Chain(tuple(reversed(stages)))


def _multiplied_out(R: Tensor) -> Tensor:
    """The product of all stages as blocks: the last stage keeps runs of that many features apart.

    One batch of products for each stage. Half ``s`` of block ``g`` of a stage and the run ``t`` of what was multiplied
    before: ``D'[(s, g, h), (t, c)] = sum_k R_g[(s, h), (t, k)] D_t[(g, k), c]``.
    """
    half, lead = R.shape[-1] // 2, R.shape[:-4]
    D = R.select(-4, 0)
    for index in range(1, R.shape[-4]):
        groups, size = 1 << index, D.shape[-1]
        own = R.select(-4, index).reshape(*lead, -1, groups, 2, half, 2, half)  # z g s h t k
        own = own.movedim(-2, -4).flatten(-3, -2)  # z g t (s h) k
        before = D.reshape(*lead, -1, 2, groups, half, size).transpose(-4, -3)  # z g t k c
        found = (own @ before).unflatten(-2, (2, half))  # z g t s h c
        D = found.movedim(-3, -5).movedim(-3, -2).reshape(*lead, -1, 2 * size, 2 * size)  # z (s g h) (t c)
    return D


def stages_of(layer: Butterfly) -> Stages:
    """A butterfly of a file as one that is trained.

    Raises:
        OrthotuneError: it permutes in another order than PEFT's, or is a map of a convolution's memory.

    Example:
        >>> import torch
        >>> stages_of(Butterfly(torch.zeros(2, 2, 2, 2), "peft", "in")).numbers.shape
        torch.Size([4, 1])
    """
    if layer.order != "peft" or layer.legacy_conv or layer.backwards:
        raise OrthotuneError("a butterfly as trained stages", needed="stages in the order of PEFT, of a plain weight")
    m, _, b = layer.skew.shape[:3]
    spec = RotationSpec(transform="butterfly", side=layer.side, block_size=b, factors=m)
    return Stages(spec, pack(layer.skew).flatten(0, 1), layer.magnitude, layer.blend, dims=layer.dims)


def _fits(features: int, b: int, m: int) -> bool:
    return b > 1 and features % (b << (m - 1)) == 0 and (m == 1 or b % 2 == 0)


def _needed(m: int) -> str:
    return f"blocks of an even size, of which a multiple of {1 << (m - 1)} fills the features" if m > 1 else "a divisor"
