"""Rotations that are computed together: one batch of small products instead of a few tiny calls for each layer."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterable

import torch
from torch import Tensor, nn

from orthotune.kernels.from_parameters import connect, rotation_of
from orthotune.kernels.rotate import joined
from orthotune.layers.parametrization.memo import Memo
from orthotune.layers.parametrization.one_call import found_in_call, in_one_call, keep_in_call
from orthotune.layers.parametrization.rotation import Rotation
from orthotune.layers.parametrization.sharding import is_zero

#: elements of R in one batch: enough to hide the cost of a call, too few to matter for the peak memory
BATCH = 1 << 22


class RotationGroup:
    """Rotations with one map that are computed together whenever one of them is stale.

    Who belongs to a group does not depend on what is stale, so that a rotation has the same bits whichever layer
    asked first. Weights that are not plain parameters at the moment (sharded, or away on another device) are left for
    their own forward.
    """

    def __init__(self, members: list[Rotation]) -> None:
        self._members = [weakref.ref(member) for member in members]
        for member in members:
            member.group = self

    def computed_with(self, first: Rotation) -> list[Rotation]:
        """The members that can be computed with ``first``, which is one of them, in the order of the layers."""
        if not Memo.can_hold(first.weight):
            return [first]  # nothing could be cached for the others
        alive = [peer for member in self._members if (peer := member()) is not None]
        return [peer for peer in alive if peer is first or _fits(peer, first)]

    def of_this_call(self, first: Rotation, trained: bool) -> Tensor | None:
        """The rotation of ``first`` where no memo can hold it: all members in one batch, once in a call of the model.

        Args:
            first: one of the members.
            trained: whether a gradient is wanted.

        Returns:
            None outside of a call, and where every layer computes for itself: a polynomial or a partial strength, and
            among several processes, which send each layer's gradient as soon as it is there.
        """
        if not in_one_call() or not first.spec.exact or first.strength.partial or torch.distributed.is_initialized():
            return None
        found = found_in_call(first.weight, first.strength, trained)
        if found is not None:
            return found
        alive = [peer for member in self._members if (peer := member()) is not None]
        peers = [peer for peer in alive if peer is first or (_fits(peer, first) and _alike(peer, first, trained))]
        weights: list[Tensor] = [peer.weight for peer in peers]
        with torch.inference_mode(False), torch.no_grad():
            R = rotation_of(first.spec, torch.cat(weights))
        rows = [weight.shape[0] for weight in weights]
        parts = connect(first.spec, weights, R) if trained else R.split(rows)
        for peer, part in zip(peers, parts, strict=True):
            keep_in_call(peer.weight, peer.strength, trained, part)
        return found_in_call(first.weight, first.strength, trained)

    def connect(self, first: Rotation, R: Tensor) -> None:
        """Give the members whose rotations were computed in one batch with ``R`` one node for their gradients.

        A single backward for the batch replaces one for each layer; it runs when the last layer has its gradient.
        """
        storage = R.untyped_storage().data_ptr()
        found: list[tuple[Rotation, Tensor]] = []
        for peer in self.computed_with(first):
            own = peer.known() if peer is not first else R
            if peer.weight.requires_grad and own.untyped_storage().data_ptr() == storage:
                found.append((peer, own))
        nodes = connect(first.spec, [peer.weight for peer, _ in found], joined([own for _, own in found]))
        for (peer, own), node in zip(found, nodes, strict=True):
            # The node lives in the memo of each member: a reference back would keep a deleted model alive.
            peer.memo.add(node=(peer.weight, own, node))


def group(rotations: Iterable[Rotation]) -> None:
    """Put the rotations of one adapter into groups, in the order of the model's layers.

    the COFT radius and experts' stacks go by the layer, so those stay alone.
    """
    open_groups: dict[Hashable, list[Rotation]] = {}
    for rotation in rotations:
        if rotation.spec.eps is not None or rotation.copies > 1 or not isinstance(rotation, Rotation):
            continue
        members = open_groups.setdefault(rotation.spec.batch_key, [])
        if members and sum(map(_elements, members)) + _elements(rotation) > BATCH:
            RotationGroup(members)
            members = open_groups[rotation.spec.batch_key] = []
        members.append(rotation)
    for members in open_groups.values():
        RotationGroup(members)


def _elements(rotation: Rotation) -> int:
    return rotation.weight.shape[0] * rotation.layout.block_size**2


def _alike(peer: Rotation, first: Rotation, trained: bool) -> bool:
    return not trained or peer.weight.requires_grad == first.weight.requires_grad


def _fits(peer: Rotation, first: Rotation) -> bool:
    one, other = peer.weight, first.weight
    return (
        not (peer.strength.partial or first.strength.partial)
        and type(one) is type(other) is nn.Parameter
        and not is_zero(one)
        and one.dtype == other.dtype
        and one.device == other.device
        and one.is_inference() == other.is_inference()
    )
