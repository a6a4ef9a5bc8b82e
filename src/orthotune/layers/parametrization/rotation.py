"""The trainable parameter of a rotation, and the rotation computed from it."""

from __future__ import annotations

import itertools
import weakref
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from orthotune.errors import ConfigError
from orthotune.kernels.autograd import looked_through, wrapped
from orthotune.kernels.from_parameters import rotation_of
from orthotune.kernels.rotate import rotate
from orthotune.layers.parametrization.memo import Memo
from orthotune.layers.parametrization.sharding import Exchanged
from orthotune.rotation.blocks import BlockLayout
from orthotune.rotation.geodesic import Planes, partial_rotation, planes_of_skew
from orthotune.rotation.spec import RotationSpec
from orthotune.rotation.strength import FULL, blended

# Compiled code finds a rotation by its number, which is a tensor: a constant would be compiled anew for every layer.
_counter = itertools.count()
_rotations: weakref.WeakValueDictionary[int, Rotation] = weakref.WeakValueDictionary()


class Batch(Protocol):
    """Rotations that are computed together; see ``group.py``."""

    def computed_with(self, first: Rotation) -> list[Rotation]:
        """The members that can be computed with ``first``, which is one of them."""

    def connect(self, first: Rotation, R: Tensor) -> None:
        """One autograd node for the members that were computed in one batch with ``R``."""

    def of_this_call(self, first: Rotation, trained: bool) -> Tensor | None:
        """The rotation of ``first`` in the present call of the model, where no memo can hold it."""


class Rotation(Exchanged):
    """Packed skew blocks ``weight`` ``(copies * rows, b (b - 1) / 2)`` of one adapter at one matrix.

    Args:
        layout: how the features are cut into blocks.
        spec: the map from the stored parameters to rotations, with its block size.
        copies: number of matrices of one shape that are rotated (the experts of a mixture), 1 otherwise.

    The rotation is computed when the stored parameters have changed, in training too, see :class:`Memo`.
    """

    def __init__(self, layout: BlockLayout, spec: RotationSpec, copies: int = 1) -> None:
        super().__init__()
        self.layout, self.spec, self.copies = layout, spec, copies
        self.memo, self.strength = Memo(), FULL
        rows, elements = layout.shape
        self.weight = nn.Parameter(torch.zeros(copies * rows, elements, dtype=spec.dtype))
        #: rotations that are computed in one batch with this one
        self.group: Batch | None = None
        self.number = _numbered(self)

    def forward(self, every_block: bool = False) -> Tensor:
        """The blocks in float32 (float64 for float64 parameters), one row per stored block unless blocks are dropped.

        ``every_block`` drops none, whatever the mode: a merge in the middle of training keeps every block.

        Shapes: ``(rows, b, b)``, or ``(copies, rows, b, b)`` when there is more than one copy.
        """
        R, dropping = self._blocks(), self.training and self.spec.dropout > 0 and not every_block
        if self.copies == 1 and not dropping:
            return R
        count, size = self.layout.block_count, self.layout.block_size
        if dropping:
            rows = R.view(self.copies, -1, size, size).expand(-1, count, -1, -1).reshape(-1, size, size)
            R = drop_blocks(rows, self.spec.dropout, self.copies * count)
        return R if self.copies == 1 else R.view(self.copies, -1, size, size)

    def _blocks(self) -> Tensor:
        weight = self.weight
        trained = torch.is_grad_enabled() and weight.requires_grad
        if torch.compiler.is_compiling():
            if not trained and not _exporting():
                return looked_up(weight, self.number, self.layout.block_size)
            return self._compute(project=trained)
        if looked_through():
            if trained or wrapped(weight):
                return self._compute()
            with torch._C._DisableFuncTorch():  # no tensor of the transform may outlive it in the memo
                R = self.current()
                return self._compute() if R is None else R
        if self.group is not None and not Memo.can_hold(weight):
            shared = self.group.of_this_call(self, trained)
            if shared is not None:
                return shared
        if trained:
            self._project()
            if self.spec.exact or self.strength.partial:
                return self._with_gradient(self.known())
            R = self.compute()  # a polynomial has no backward from R alone
            self.memo.keep(weight, weight.detach().clone(), R=R.detach(), strength=self.strength)
            return R
        return self.known()

    def rotated(self, x: Tensor) -> Tensor | None:
        """``x`` rotated by compiled code on a CPU without gradients; None where blocks are needed to rotate it.

        One operation looks the rotation up and uses it, so that no copy of its blocks is made for each token.

        Shapes: ``x`` ``(..., n)``, which the return value has, too.
        """
        if not torch.compiler.is_compiling() or torch.is_grad_enabled() or _exporting() or x.device.type != "cpu":
            return None
        if self.copies > 1 or self.training or torch.is_autocast_enabled("cpu"):
            return None
        return rotated_now(x, self.weight, self.number)

    def _compute(self, project: bool = False) -> Tensor:
        if project:
            self._project()
        return self.compute()

    def _project(self) -> None:
        if self.training:
            self.project()

    def project(self) -> None:
        """COFT: project the stored parameters into the radius, which changes no rotation."""
        if self.spec.eps is None:
            return
        weight = self.weight
        with torch.no_grad():
            # Through .data: projecting again changes no bit, so a module used twice in one forward must not
            # count as modified between its first use and the backward.
            weight.data.copy_(self.spec.within_ball(self._by_matrix(weight)).view(weight.shape))
            self.write_shard()

    def known(self) -> Tensor:
        """The rotation without a gradient ``(copies * rows, b, b)``, from the memo while the parameter is unchanged."""
        R = self.memo.get(self.weight, "R")
        if R is None or self.memo.peek("strength") is not self.strength:
            R = self._renew()
        return R

    def current(self) -> Tensor | None:
        """The value of :meth:`known` if it is cached, None if it is stale."""
        return self.memo.get(self.weight, "R") if self.memo.peek("strength") is self.strength else None

    def served(self) -> Tensor | None:
        """What :meth:`known` gave last, without a look at the parameter; its owner looks when it uses it."""
        return self.memo.peek("R") if self.memo.peek("strength") is self.strength else None

    def _renew(self) -> Tensor:
        weight = self.weight
        peers = [self] if self.group is None or self.strength.partial else self.group.computed_with(self)
        # A result that is computed in inference mode must still serve a later training step.
        with torch.inference_mode(False), torch.no_grad():
            if len(peers) == 1:
                R = self.compute()
                planes = self.memo.get(weight, "planes")  # the same for every strength
                self.memo.keep(weight, weight.detach().clone(), R=R, strength=self.strength, planes=planes)
                return R
            rows = [peer.weight.shape[0] for peer in peers]
            numbers = torch.cat([peer.weight for peer in peers])
            found = dict(zip(peers, rotation_of(self.spec, numbers).split(rows), strict=True))
            for (peer, R), v in zip(found.items(), numbers.split(rows), strict=True):
                planes = peer.memo.get(peer.weight, "planes")
                peer.memo.keep(peer.weight, v, R=R, strength=peer.strength, planes=planes)
            return found[self]

    def _with_gradient(self, R: Tensor) -> Tensor:
        # Several processes send each layer's gradient as soon as it is there, so each layer has a node of its own.
        if self.group is None or self.strength.partial or torch.distributed.is_initialized():
            return self.compute(R)
        node = self.node(R)
        if node is None:
            self.group.connect(self, R)
            node = self.node(R)
        return self.compute(R) if node is None else node

    def node(self, R: Tensor) -> Tensor | None:
        """``R`` with the gradient to the present parameter, if a training step has asked for it before."""
        kept = self.memo.peek("node")
        return kept[2] if kept is not None and kept[0] is self.weight and kept[1] is R else None

    def compute(self, known: Tensor | None = None) -> Tensor:
        """The rotation at the present strength with its gradient; ``known`` when only the gradient is missing.

        Raises:
            ConfigError: a polynomial is to be trained at a geodesic strength.
        """
        if not self.strength.partial:
            return self.at_full_strength(known)
        if self.strength.kind != "geodesic":
            return blended(self.at_full_strength(), self.strength.t)
        v, strength, spec = self.weight, self.strength, self.spec
        differentiated = torch.is_grad_enabled() and v.requires_grad
        if looked_through() and (differentiated or wrapped(v)):
            raise ConfigError(
                f"a transform of functions through a rotation at strength {strength.t:g}", needed="strength 1",
                do="Call set_scale(adapter, 1), or set_scale(adapter, t, kind='linear'), before torch.func",
            )  # fmt: skip
        if differentiated and not spec.exact:
            raise ConfigError(
                f"training a Neumann series at strength {strength.t:g}", needed="strength 1, or the exact map",
                do="Call set_scale(adapter, 1) before training, or set_scale(adapter, t, kind='linear')",
            )  # fmt: skip
        Q = spec.skew(self._by_matrix(v)).view(v.shape[0], spec.block_size, spec.block_size)
        return partial_rotation(Q, strength.t, self._planes(Q), known)

    def _planes(self, Q: Tensor) -> Planes:
        """The planes of the present parameter: four times the memory of R in float64, two products for any strength."""
        found = None if torch.compiler.is_compiling() else self.memo.get(self.weight, "planes")
        if found is None:
            with torch.inference_mode(False), torch.no_grad():
                found = planes_of_skew(Q, None if self.spec.exact else self.at_full_strength())
                if not torch.compiler.is_compiling() and not looked_through():
                    self.memo.keep(self.weight, self.weight.detach().clone(), planes=found)
        return found

    def at_full_strength(self, known: Tensor | None = None) -> Tensor:
        """The rotation at strength 1 with its gradient; ``known`` is the result when only the gradient is missing."""
        v = self.weight
        if self.copies == 1 or self.spec.eps is None:
            return rotation_of(self.spec, v, known)
        known = None if known is None else known.view(self.copies, -1, *known.shape[1:])
        return rotation_of(self.spec, self._by_matrix(v), known).flatten(0, 1)

    def _by_matrix(self, v: Tensor) -> Tensor:
        """The stored parameters ``(copies, rows, n)``: the COFT radius depends on the blocks of one matrix."""
        return v if self.spec.eps is None else v.view(self.copies, -1, v.shape[-1])

    def _apply(self, *args: Any, **kwargs: Any) -> Rotation:
        self.memo.drop("miss: the parameter has another device or dtype")
        return super()._apply(*args, **kwargs)

    def _replicate_for_data_parallel(self) -> Rotation:
        replica = super()._replicate_for_data_parallel()
        replica.memo, replica.group = Memo(), None
        return replica

    def __getstate__(self) -> dict[str, Any]:
        # A copy computes for itself: its group would bring the entire model along.
        return {**self.__dict__, "memo": Memo(), "group": None, "shard": None, "number": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.number = _numbered(self)

    def extra_repr(self) -> str:
        return f"blocks={self.layout.block_count}x{self.layout.block_size}, shared={self.layout.shared}"


def drop_blocks(R: Tensor, probability: float, count: int) -> Tensor:
    """Multiplicative dropout: each of ``count`` blocks is kept, or is the identity with ``probability``.

    Shapes: ``R`` ``(count, b, b)``, or ``(1, b, b)`` for a shared block; returns ``(count, b, b)``: where a shared
    block acts it is dropped feature by feature.

    Example:
        >>> drop_blocks(torch.zeros(1, 2, 2), 1.0, 3).shape
        torch.Size([3, 2, 2])
    """
    keep = torch.rand(count, 1, 1, device=R.device) >= probability
    return torch.where(keep, R, torch.eye(R.shape[-1], dtype=R.dtype, device=R.device))


def _exporting() -> bool:
    # is_exporting() is true of everything that torch 2.9 to 2.11 compile; the flag behind it is not.
    flag = getattr(torch.compiler, "_is_exporting_flag", None)
    return torch.compiler.is_exporting() if flag is None else bool(flag)


def _numbered(rotation: Rotation) -> Tensor:
    """A number for ``rotation`` by which compiled code finds it; it does not keep it alive."""
    number = next(_counter)
    _rotations[number] = rotation
    with torch.inference_mode(False):
        return torch.tensor(number, device="cpu")


# A recorded CUDA graph would hold on to the rotation of its recording, whatever becomes of the parameter.
_tags: Any = tuple(
    getattr(torch._C.Tag, name) for name in ("cudagraph_unsafe",) if hasattr(torch._C.Tag, "cudagraph_unsafe")
)


@torch.library.custom_op("orthotune::rotation", mutates_args=(), tags=_tags)
def looked_up(weight: Tensor, number: Tensor, block_size: int) -> Tensor:
    """The rotation of a parameter ``(rows, n)`` as it is now: ``(rows, b, b)`` in float32 or better.

    For compiled code without gradients: the memo is consulted while the code runs. A copy is returned, because
    compiled code may reuse the memory of its inputs.

    Example:
        >>> rotation = Rotation(BlockLayout(4, 2, shared=False), RotationSpec(block_size=4))
        >>> looked_up(rotation.weight.detach(), rotation.number, 4).shape
        torch.Size([2, 4, 4])
    """
    return _rotations[int(number)].known().clone()


@looked_up.register_fake
def _(weight: Tensor, number: Tensor, block_size: int) -> Tensor:
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return weight.new_empty(weight.shape[0], block_size, block_size, dtype=dtype)


def rotated_now(x: Tensor, weight: Tensor, number: Tensor) -> Tensor:
    """An input ``(..., n)`` rotated by the rotation of a parameter as it is now, for compiled code without gradients.

    Example:
        >>> rotation = Rotation(BlockLayout(4, 2, shared=False), RotationSpec(block_size=4))
        >>> rotated_now(torch.ones(1, 8), rotation.weight.detach(), rotation.number).shape
        torch.Size([1, 8])
    """
    return torch.ops.orthotune.rotated.default(x, weight, number)


# Called for every token: a custom_op would take 5 of 20 microseconds around this operation.
_operations = torch.library.Library("orthotune", "FRAGMENT")
_operations.define("rotated(Tensor x, Tensor weight, Tensor number) -> Tensor", tags=_tags)


@torch.library.impl(_operations, "rotated", "CPU")
def _(x: Tensor, weight: Tensor, number: Tensor) -> Tensor:
    return rotate(x, _rotations[int(number)].known()).contiguous()


@torch.library.register_fake("orthotune::rotated")
def _(x: Tensor, weight: Tensor, number: Tensor) -> Tensor:
    return x.new_empty(x.shape)
