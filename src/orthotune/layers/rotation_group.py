"""Rotations that are computed together: one batch of small products instead of a few tiny calls for each layer."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from orthotune.layers.rotation_module import Rotation

#: numbers of R in one batch: enough to hide what a call costs, little enough to leave no mark on the peak of memory
BATCH = 1 << 22


class RotationGroup:
    """The rotations of one adapter, in the order of the model's layers.

    When one is out of date, the ones after it that are too, and that share its map, dtype and device, are computed with
    it. COFT's radius and experts' stacks go by the layer, so those stay alone. Weights that are not plain parameters at
    the moment (sharded, or away on another device) are left for their own forward.
    """

    def __init__(self, members: list[Rotation]) -> None:
        self._members = [weakref.ref(member) for member in members]
        for place, member in enumerate(members):
            member.group, member.place = self, place

    def out_of_date(self, first: Rotation) -> list[Rotation]:
        """``first`` and those after it that can be computed with it."""
        found, numbers = [first], first.weight.shape[0] * first.layout.block_size**2
        if first.map.eps is not None or first.copies > 1:
            return found
        for member in self._members[first.place + 1 :]:
            peer = member()
            if peer is None or peer.copies > 1 or peer.map != first.map or not _beside(peer.weight, first.weight):
                continue
            numbers += peer.weight.shape[0] * peer.layout.block_size**2
            if numbers > BATCH:
                break
            if peer.cache.get(peer.weight) is None:
                found.append(peer)
        return found


def _beside(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (
        type(one) is type(other) is nn.Parameter
        and one.dtype == other.dtype
        and one.device == other.device
        and one.is_inference() == other.is_inference()
    )
