"""Stages of Givens rotations: a tree of planes that mixes all features of a group with one angle a feature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from orthotune.errors import BlockSizeError, OrthotuneError
from orthotune.rotation.blocks import divisors
from orthotune.rotation.family import FamilyTransform, Sizes, recomputed
from orthotune.rotation.geodesic import planes
from orthotune.rotation.operator import Chain, Operator, Pairs, Stage, blocks_of
from orthotune.rotation.spec import RotationSpec

#: Largest group that is multiplied out to one block: a product of blocks is one call, a chain one for each stage.
LARGEST_BLOCK = 128


@dataclass(frozen=True)
class Givens(FamilyTransform):
    """``M = G_1 G_2 .. G_m`` in each group of ``b = 2^m`` features: ``b - 1`` planes, one angle each.

    Stage ``s`` (from 1) rotates the planes of the features ``k 2^s`` and ``k 2^s + 2^(s-1)`` of a group (from 0): first
    neighbours, then every second feature, until the first and the middle one. ``numbers`` are the angles, one row for
    each group, stage after stage. One group of all features is the published map; smaller ones are multiplied out to
    blocks, which is quicker. Its powers are rotations of another form.

    Source: GOFT, arXiv 2404.04316, section 3: ``d - 1`` Givens rotations in ``log2 d`` parallel stages. Its relaxed
    form qGOFT, four numbers a plane with a penalty, is not here.

    Example:
        >>> quarter = torch.tensor([[torch.pi / 2, 0.0, 0.0]])
        >>> made = Givens(RotationSpec(transform="givens", block_size=4), quarter)
        >>> made.act(torch.tensor([3.0, 4.0, 5.0, 6.0])).round()
        tensor([-4.,  3.,  5.,  6.])
    """

    name: ClassVar[str] = "givens"

    @classmethod
    def sizes(cls, features: int, spec: RotationSpec) -> Sizes:
        b = spec.block_size
        if not _fits(features, b):
            raise OrthotuneError(
                f"stages of planes in groups of {b}",
                got=f"{features} features",
                needed="a power of 2, a divisor",
            )
        return Sizes(features, features // b, b - 1, b, features // b)

    @classmethod
    def choose(cls, spec: RotationSpec, features: int, r: int, fallback: str, layer: str) -> tuple[RotationSpec, bool]:
        wanted = -(-features // r) if r else spec.block_size
        known = [d for d in divisors(features) if _fits(features, d)]
        if known and (fallback == "nearest" or (wanted in known and (not r or wanted * r == features))):
            found = min(known, key=lambda d: (abs(d - wanted), d))
            return replace(spec, block_size=found), found != wanted
        raise BlockSizeError(
            f"groups of {wanted} for the planes of layer '{layer}'", got=f"{features} features",
            needed=f"one of {known}" if known else "an even number of features",
            do='Pass one of them, exclude the layer, or set block_size_fallback="nearest"',
        )  # fmt: skip

    @classmethod
    def spec_of_shape(cls, spec: RotationSpec, shape: Sequence[int]) -> RotationSpec:
        if not _fits(shape[1] + 1, shape[1] + 1):
            raise OrthotuneError("stages of planes", got=f"{shape[1]} angles", needed="a power of 2, less one")
        return replace(spec, block_size=shape[1] + 1, rank=0)

    @classmethod
    def operator_of(cls, spec: RotationSpec, v: Tensor, basis: Tensor | None = None, plain: bool = False) -> Operator:
        if not cls.written_out(spec, trained=True):
            return _stages(v)
        return Stage(_multiplied(v) if plain else recomputed(_multiplied, v))

    @classmethod
    def written_out(cls, spec: RotationSpec, trained: bool) -> bool:
        return spec.block_size <= LARGEST_BLOCK

    @classmethod
    def factors_of(cls, spec: RotationSpec, v: Tensor, basis: Tensor | None = None) -> Tensor:
        return _multiplied(v).flatten(0, -3)

    @classmethod
    def powers_are_blocks(cls, spec: RotationSpec) -> bool:
        return True

    @classmethod
    def blocks_of(cls, spec: RotationSpec, v: Tensor, basis: Tensor | None = None) -> Tensor:
        return _multiplied(v).flatten(0, -3)

    @classmethod
    def power_of(cls, spec: RotationSpec, v: Tensor, t: float, basis: Tensor | None = None) -> Operator:
        return Stage(planes(_multiplied(v.double())).power(t).to(v.dtype))


def _fits(features: int, b: int) -> bool:
    return b > 1 and b & (b - 1) == 0 and features % b == 0


def _stages(v: Tensor) -> Chain:
    """The stages of angles ``(..., groups, b - 1)``, the first one first."""
    size, start, found = v.shape[-1] + 1, 0, []
    half = 1
    while half < size:
        count = size // (2 * half)
        angle = v[..., start : start + count].flatten(-2)  # of all planes of the stage, group after group
        one, none = (torch.full_like(angle, value).unsqueeze(-1).expand(*angle.shape, half - 1) for value in (1.0, 0.0))
        c = torch.cat([angle.cos().unsqueeze(-1), one], -1)
        d = torch.cat([angle.sin().unsqueeze(-1), none], -1)
        found.append(Pairs(torch.stack([c, c], -2), torch.stack([d, -d], -2)))
        start, half = start + count, 2 * half
    return Chain(tuple(found))


def _multiplied(v: Tensor) -> Tensor:
    """The product of all stages as blocks ``(..., groups, b, b)``."""
    return blocks_of(_stages(v), v.shape[-1] + 1)
