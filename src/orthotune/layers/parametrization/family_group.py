"""Operators of one form that are computed together: one batch of small products instead of a few for each layer."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from orthotune.errors import OrthotuneError
from orthotune.kernels.autograd import gradients_again
from orthotune.layers.parametrization.family import FamilyRotation
from orthotune.layers.parametrization.memo import Memo
from orthotune.layers.parametrization.sharding import is_zero
from orthotune.rotation.family import computed_again, wide
from orthotune.rotation.operator import Operator, mapped

#: elements of the operators of one batch: enough to hide the cost of a call, too few to matter for the peak memory
BATCH = 1 << 22


class FamilyGroup:
    """Transforms of one spec and size that are computed together whenever one of them is stale.

    Who belongs to a group does not depend on what is stale, so that an operator has the same bits whichever layer asked
    first, with a gradient or without. A transform with a basis is computed by itself: its basis would have to be copied
    into the batch.

    Args:
        members: of one spec, in the order of the layers.
    """

    def __init__(self, members: Sequence[FamilyRotation]) -> None:
        self._members = [weakref.ref(member) for member in members]
        for member in members:
            member.group = self

    def renew(self, first: FamilyRotation) -> None:
        """Compute the operators of the members without a gradient, and keep them in their memos.

        Args:
            first: one of the members, whose memo is stale.
        """
        peers = [peer for peer in self._alive() if peer is first or _fits(peer, first)]
        with torch.inference_mode(False), torch.no_grad():
            numbers = torch.stack([peer.weight.detach() for peer in peers])
            made = _function(first)(numbers)
            for index, peer in enumerate(peers):
                peer.memo.keep(peer.weight, numbers[index], made=(numbers, made, index))

    def connect(self, first: FamilyRotation) -> None:
        """Give the members that were computed in one batch with ``first`` one node for their gradients.

        A single backward for the batch replaces one for each layer; it runs when the last layer has its gradient.

        Args:
            first: one of the members, whose memo is not stale.
        """
        batch = first.memo.peek("made")
        if batch is None:  # another thread has seen a write
            return
        numbers, made, index = batch
        found = [(first, index)]
        if not torch.distributed.is_initialized():  # where each layer sends its gradient as soon as it is there
            known = [(peer, peer.memo.get(peer.weight, "made")) for peer in self._alive() if peer.weight.requires_grad]
            found = [(peer, kept[2]) for peer, kept in known if kept is not None and kept[0] is numbers]
        rows = [index for _, index in found]
        own = numbers if rows == list(range(len(numbers))) else numbers[rows]
        nodes = connected(_function(first), own, [made.at(row) for row in rows], [p.weight for p, _ in found])
        for (peer, _), node in zip(found, nodes, strict=True):
            # The node lives in the memo of each member: a reference back would keep a deleted model alive.
            peer.memo.add(node=(peer.weight, node))

    def _alive(self) -> list[FamilyRotation]:
        return [peer for member in self._members if (peer := member()) is not None]


class _Together(torch.autograd.Function):
    """The gradient of operators that are known, those of many layers in one batch.

    The numbers are no saved tensors, which a backward would free: one node serves every forward until a parameter
    changes. They are all that is kept, and the operators are computed once more in the backward.
    """

    @staticmethod
    def forward(ctx: Any, function: Callable[[Tensor], Operator], numbers: Tensor, parts: Any, *stored: Tensor) -> Any:
        ctx.function, ctx.numbers, ctx.stored = function, numbers, stored
        ctx.versions = [None if v.is_inference() else v._version for v in stored]
        ctx.set_materialize_grads(False)
        return tuple(part.view_as(part) for part in parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        count = len(ctx.stored)
        if torch.is_grad_enabled():
            return None, None, None, *_again(ctx, grads)
        each = len(grads) // count
        came = [any(grad is not None for grad in grads[i * each : (i + 1) * each]) for i in range(count)]
        rows = [i for i in range(count) if came[i]]
        found: list[Tensor | None] = [None] * count
        if rows:
            numbers = ctx.numbers if len(rows) == count else ctx.numbers[rows]
            with torch.enable_grad(), torch.autocast(numbers.device.type, enabled=False), computed_again():
                leaf = numbers.detach().requires_grad_()
                outputs = _flat(ctx.function(leaf))
                arrived = [_stacked([grads[i * each + j] for i in rows], one) for j, one in enumerate(outputs)]
                pairs = [(y, g) for y, g in zip(outputs, arrived, strict=True) if g is not None and y.requires_grad]
                (total,) = torch.autograd.grad([y for y, _ in pairs], leaf, [g for _, g in pairs])
            for place, i in enumerate(rows):
                found[i] = total[place]
        return None, None, None, *found


def connected(
    function: Callable[[Tensor], Operator], numbers: Tensor, made: Sequence[Operator], stored: Sequence[Tensor]
) -> list[Operator]:
    """Known operators of several layers, each with the gradient to its own stored parameters, in one node.

    Args:
        function: from a stack of parameters to a stack of operators, differentiable.
        numbers: a copy of the parameters ``(layers, rows, elements)``.
        made: the operators of these.
        stored: the parameters.

    Example:
        >>> from orthotune.rotation.operator import LowRank
        >>> v = torch.ones(1, 2, requires_grad=True)
        >>> (one,) = connected(lambda s: LowRank(s, 2 * s), v.detach()[None], [LowRank(v.data, 2 * v.data)], [v])
        >>> torch.autograd.grad(one.right(torch.ones(2)).sum(), v)[0]
        tensor([[8., 8.]])
    """
    parts = iter(_Together.apply(function, numbers, [part for one in made for part in _flat(one)], *stored))
    return [mapped(one, lambda _: next(parts)) for one in made]


def _again(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """The gradients with a graph: from the parameters once more, which must be what they were."""
    if any(seen is not None and seen != v._version for seen, v in zip(ctx.versions, ctx.stored, strict=True)):
        raise OrthotuneError(
            "a second derivative of a transform", got="a parameter that was written to after the forward",
            do="Compute the derivatives before the optimizer steps",
        )  # fmt: skip

    def plain(*stored: Tensor) -> list[Tensor]:
        return [part for v in stored for part in _flat(ctx.function(v.unsqueeze(0)).at(0))]

    with torch.autocast(ctx.numbers.device.type, enabled=False):
        return gradients_again(plain, ctx.stored, grads, [v.requires_grad for v in ctx.stored])


def _function(rotation: FamilyRotation) -> Callable[[Tensor], Operator]:
    kind, spec = rotation.kind, rotation.spec  # not the module, which a node would keep alive

    def made(numbers: Tensor) -> Operator:
        v = wide(numbers)
        if len(v) > 1:
            return kind.operator_of(spec, v)
        return mapped(kind.operator_of(spec, v[0]), lambda part: part.unsqueeze(0))  # a stack of one is no stack

    return made


def _flat(operator: Operator) -> list[Tensor]:
    found: list[Tensor] = []

    def kept(part: Tensor) -> Tensor:
        found.append(part)
        return part

    mapped(operator, kept)
    return found


def _stacked(grads: Sequence[Tensor | None], like: Tensor) -> Tensor | None:
    if all(grad is None for grad in grads):
        return None
    return torch.stack([torch.zeros_like(like[0]) if grad is None else grad.to(like.dtype) for grad in grads])


def group_family(rotations: Iterable[nn.Module]) -> None:
    """Put the transforms of one adapter into groups, in the order of the model's layers.

    Stacks of experts and transforms with a basis stay alone.

    Args:
        rotations: of all layers, also those of blocks.
    """
    open_groups: dict[Hashable, list[FamilyRotation]] = {}
    for rotation in rotations:
        if not isinstance(rotation, FamilyRotation) or rotation.copies > 1 or rotation.basis is not None:
            continue
        key = (rotation.kind, rotation.spec, rotation.layout)
        members = open_groups.setdefault(key, [])
        if members and (len(members) + 1) * _elements(rotation) > BATCH:
            FamilyGroup(members)
            members = open_groups[key] = []
        members.append(rotation)
    for members in open_groups.values():
        FamilyGroup(members)


def _elements(rotation: FamilyRotation) -> int:
    sizes = rotation.layout
    return max(sizes.rows * sizes.elements, sizes.features * sizes.block_size)


def _fits(peer: FamilyRotation, first: FamilyRotation) -> bool:
    one, other = peer.weight, first.weight
    return (
        not peer.strength.partial
        and Memo.can_hold(one)
        and not is_zero(one)
        and one.shape == other.shape
        and one.dtype == other.dtype
        and one.is_inference() == other.is_inference()
    )
