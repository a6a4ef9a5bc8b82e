"""Rotations that are computed together: one batch of small products instead of a few tiny calls for each layer."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn

from orthotune.kernels.from_parameters import RotationMap
from orthotune.kernels.rotate import joined
from orthotune.layers.sharding import is_zero

if TYPE_CHECKING:
    from orthotune.layers.rotation_module import Rotation

#: numbers of R in one batch: enough to hide what a call costs, little enough to leave no mark on the peak of memory
BATCH = 1 << 22


class RotationGroup:
    """Rotations with one map that are computed together whenever one of them is out of date.

    Who belongs to a group does not depend on what is out of date, so that a rotation has the same bits whichever layer
    asked first. Weights that are not plain parameters at the moment (sharded, or away on another device) are left for
    their own forward.
    """

    def __init__(self, members: list[Rotation]) -> None:
        self._members = [weakref.ref(member) for member in members]
        for member in members:
            member.group = self

    def with_(self, first: Rotation) -> list[Rotation]:
        """The members that can be computed with ``first``, which is one of them, in the order of the layers."""
        alive = [peer for member in self._members if (peer := member()) is not None]
        return [peer for peer in alive if peer is first or self._fits(peer, first)]

    @staticmethod
    def _fits(peer: Rotation, first: Rotation) -> bool:
        return not (peer.strength.partial or first.strength.partial) and _beside(peer.weight, first.weight)

    def connect(self, first: Rotation) -> None:
        """Give the members whose rotations are known together with that of ``first`` one node for their gradients.

        One backward of a batch takes the place of one for each layer; it runs when the last of them has its gradient.
        """
        home = _home(first)
        peers = [peer for peer in self.with_(first) if peer.weight.requires_grad and _home(peer) == home]
        R = joined([R for peer in peers if (R := peer.cache.get(peer.weight)) is not None])
        # The node lives in the caches: a strong reference back would keep a deleted model alive.
        caches = [weakref.ref(peer.cache) for peer in peers]

        def spent() -> None:
            for kept in caches:
                if (cache := kept()) is not None:
                    cache.doubt()

        for peer, trained in zip(peers, first.map.connect([peer.weight for peer in peers], R, spent), strict=True):
            peer.cache.trained = trained


def group(rotations: Iterable[Rotation]) -> None:
    """Put the rotations of one adapter into groups, in the order of the model's layers.

    COFT's radius and experts' stacks go by the layer, so those stay alone.
    """
    open_groups: dict[RotationMap, list[Rotation]] = {}
    for rotation in rotations:
        if rotation.map.eps is not None or rotation.copies > 1:
            continue
        members = open_groups.setdefault(rotation.map, [])
        if members and sum(map(_numbers, members)) + _numbers(rotation) > BATCH:
            RotationGroup(members)
            members = open_groups[rotation.map] = []
        members.append(rotation)
    for members in open_groups.values():
        RotationGroup(members)


def _home(rotation: Rotation) -> int | None:
    """Where the batch is that a rotation was computed in; None when it is out of date."""
    R = rotation.cache.get(rotation.weight)
    return None if R is None else R.untyped_storage().data_ptr()


def _numbers(rotation: Rotation) -> int:
    return rotation.weight.shape[0] * rotation.layout.block_size**2


def _beside(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (
        type(one) is type(other) is nn.Parameter
        and not is_zero(other)
        and one.dtype == other.dtype
        and one.device == other.device
        and one.is_inference() == other.is_inference()
    )
