"""Combine layers of transforms besides blocks: into one map of the same transform, or a refusal with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn, Protocol

import torch
from torch import Tensor

from orthotune.errors import OrthotuneError, UnsupportedLayerError
from orthotune.rotation.family import FamilyTransform, wide, within_span
from orthotune.rotation.geodesic import reflection_pairs
from orthotune.rotation.operator import LowRank
from orthotune.rotation.packing import unpack
from orthotune.rotation.pairs import PairedPlanes
from orthotune.rotation.reflections import GRAM_SCHMIDT, Reflections
from orthotune.rotation.stages import Stages
from orthotune.rotation.subspace import Subspace

#: Largest difference of two bases that are called equal: rounding of the float32 in a file.
_SAME_BASIS = 1e-4
_LORA = "orthotune combine A:0.7 B:0.3 --type svd_lora, or activate the adapters together"


class Rule(Protocol):
    """How rotations are combined, see :class:`orthotune.tuner.combination.Combination`."""

    def rotation(self, R: Tensor, last_first: bool) -> Tensor:
        """One rotation ``(..., b, b)`` of several, ``(k, ..., b, b)``."""

    def summed(self, tangents: Tensor) -> Tensor:
        """One direction of several, ``(k, ...)``."""

    def packed(self, R: Tensor) -> Tensor:
        """The stored parameters of a rotation."""


def joint_family(how: Rule, name: str, layers: Sequence[FamilyTransform | None]) -> FamilyTransform:
    """One layer of several adapters combined, without its magnitude; an adapter without the layer is the identity.

    Args:
        how: the rule of combining.
        name: of the layer, for messages.
        layers: the layer in each adapter.

    Returns:
        A map of the same transform. Reflections get the sum of the ranks.

    Raises:
        UnsupportedLayerError: no map of the transform is the combination; the message has the reason.
    """
    held = [layer for layer in layers if layer is not None]
    first = held[0]
    for what in ("transform", "variant", "side", "factors", "conv"):
        found = sorted({str(getattr(layer.spec, what)) for layer in held})
        if len(found) > 1:
            _refuse(name, f"{what} {' and '.join(found)}", "the same in all adapters")
    if any(layer.backwards or layer.embedding != first.embedding for layer in held):
        _refuse(name, "an inverse map, or an embedding beside another layer", "maps of one kind")
    try:
        if isinstance(first, Reflections):
            return _reflections(how, name, layers, first)
        if isinstance(first, PairedPlanes):
            return _planes(how, name, layers, first)
        if isinstance(first, (Subspace, Stages)):
            return _blocks(how, name, layers, first)
    except UnsupportedLayerError:
        raise
    except OrthotuneError as error:
        raise UnsupportedLayerError(
            f"layer '{name}': {error.given}", got=error.got, needed=error.needed, do=error.do
        ) from error
    _refuse(name, f"the transform '{first.spec.transform}', of which no combination has the same form", "another one")


def _refuse(name: str, got: str, needed: str) -> NoReturn:
    raise UnsupportedLayerError(f"combining layer '{name}'", got=got, needed=needed, do=_LORA)


def _planes(how: Rule, name: str, layers: Sequence[FamilyTransform | None], first: PairedPlanes) -> FamilyTransform:
    """Planes of equal features commute: every rule adds their angles and the logarithms of their scales."""
    if len({(layer.spec.block_size, layer.numbers.shape) for layer in layers if layer is not None}) > 1:
        _refuse(name, "planes of different features", "groups of one size")
    tangents = []
    for layer in layers:
        if layer is None:
            tangents.append(torch.zeros_like(first.numbers, dtype=torch.float64))
            continue
        moved = layer.numbers_at(layer.spec, wide(layer.numbers), 1.0)
        scaled = moved.shape[0] > 1 and first.spec.variant == "road_1"
        tangents.append(torch.cat([moved[::2], moved[1::2].log1p()]) if scaled else moved)
    found = how.summed(torch.stack(tangents))
    half = found.shape[0] // 2
    if first.spec.variant == "road_1":
        found = torch.stack([found[:half], found[half:].expm1()], 1).flatten(0, 1)
    return replace(first, numbers=found.float())


def _blocks(how: Rule, name: str, layers: Sequence[FamilyTransform | None], first: FamilyTransform) -> FamilyTransform:
    """The rotations of a subspace, or of the blocks of a single stage."""
    spec = first.spec
    if spec.factors > 1 or spec.variant.startswith("psoft"):
        what = f"{spec.factors} stages" if spec.factors > 1 else "a rotation between two scales"
        _refuse(name, f"{what}, of which no combination has the same form", "one stage, or a rotation without scales")
    if len({layer.numbers.shape for layer in layers if layer is not None}) > 1:
        _refuse(name, "different sizes", "equal sizes of blocks or ranks")
    size = spec.block_size or spec.rank
    for layer in layers:
        if layer is None or (layer.basis is None and first.basis is None):
            continue
        if layer.basis is None or first.basis is None or not _alike(layer.basis, first.basis):
            _refuse(name, "subspaces of different weights", "adapters of one base, with one basis")
    eye = torch.eye(size, dtype=torch.float64, device=first.numbers.device)
    R = [
        eye.expand(first.numbers.shape[0], size, size) if layer is None
        else spec.from_skew(unpack(layer.numbers.double(), size))
        for layer in layers
    ]  # fmt: skip
    return replace(first, numbers=how.packed(how.rotation(torch.stack(R), spec.side == "out")).float())


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one.double() - other.double()).abs().max() < _SAME_BASIS)


def _reflections(how: Rule, name: str, layers: Sequence[FamilyTransform | None], first: Reflections) -> FamilyTransform:
    """In the span of the vectors of all adapters, where a rotation of an even size is a product of reflections."""
    held = [layer for layer in layers if layer is not None]
    if first.spec.variant == GRAM_SCHMIDT or any(layer.spec.rank % 2 for layer in held):
        _refuse(name, "reflections whose determinant may be -1", "an even number, without gram_schmidt")
    if any(layer.numbers.shape[0] != layer.spec.rank for layer in held):
        _refuse(name, "a stack of experts", "one matrix")
    if len({layer.numbers.shape[-1] for layer in held}) > 1:
        _refuse(name, "reflections of different numbers of features", "adapters of one base")
    rank = sum(layer.spec.rank for layer in held)
    if rank > first.numbers.shape[-1]:
        _refuse(name, f"{rank} reflections of {first.numbers.shape[-1]} features", "no more vectors than features")
    vectors = torch.cat([layer.numbers.double() for layer in held])
    span = torch.linalg.qr(vectors.mT).Q.mT
    eye = torch.eye(rank, dtype=torch.float64, device=span.device)
    R = []
    for layer in layers:
        if layer is None:
            R.append(eye)
            continue
        made = layer.operator_of(layer.spec, layer.numbers.double())
        assert isinstance(made, LowRank)
        if bool(torch.linalg.det(within_span(made)[1]) < 0):
            _refuse(name, "reflections whose determinant is -1", "rotations")
        R.append(eye + (span @ made.A.mT) @ (made.B @ span.mT))
    found = how.rotation(torch.stack(R), first.spec.side == "out")
    length = vectors.norm(dim=-1).mean()
    numbers = (reflection_pairs(found, 1.0) @ span * length).float()
    return replace(first, numbers=numbers, spec=replace(first.spec, rank=rank))
