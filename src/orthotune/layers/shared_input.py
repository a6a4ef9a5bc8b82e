"""Projections of one input, as query, key and value: the first that is called rotates the input for all of them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from orthotune.kernels.autograd import looked_through, looked_through_uncompiled
from orthotune.kernels.choose import free
from orthotune.kernels.rotate import joined, rotate_each, rotate_joined, rotate_row
from orthotune.layers.base import OFTLayer
from orthotune.layers.beside_adapters import beside_adapters
from orthotune.layers.parametrization.family import FamilyRotation
from orthotune.layers.parametrization.memo import Memo
from orthotune.layers.parametrization.rotation import Rotation
from orthotune.layers.parametrization.sharding import is_zero
from orthotune.layers.repeated_call import SHORT, call_base
from orthotune.rotation.operator import Operator, Stage

#: children of one module that get its input together, in calling order
TOGETHER = (
    ("q_proj", "k_proj", "v_proj"),  # Llama, Mistral, Qwen, Gemma, OPT, CLIP
    ("to_q", "to_k", "to_v"),  # diffusers
    ("add_q_proj", "add_k_proj", "add_v_proj"),  # diffusers' joint attention
    ("query", "key", "value"),  # BERT, ViT
    ("q_lin", "k_lin", "v_lin"),  # DistilBERT
    ("q", "k", "v"),  # T5
    ("gate_proj", "up_proj"),  # Llama's feed-forward
    ("w1", "w3"),  # experts of Mixtral
    ("wi_0", "wi_1"),  # T5 1.1
)


class _Pending(NamedTuple):
    """What the first layer has made for the others, of which input, and with which rotations."""

    x: Tensor
    version: int
    grad: bool
    outputs: dict[int, tuple[Tensor, Tensor | Operator | None]]


class Again:
    """One layer's part of a call without gradients that is like the last one: no plan is made anew.

    Everything that a plan depends on is either compared here (the parameters of the rotation, hooks, a forward on the
    instance) or ends this object (adapters, strengths, merges, the mode: :meth:`OFTLayer.changed`).
    """

    __slots__ = (
        "R", "base", "count", "entry", "features", "forward", "id", "index", "layer", "memo", "parameters", "rotation",
        "shared",
    )  # fmt: skip

    def __init__(
        self, shared: SharedInput, index: int, layer: OFTLayer, rotation: Rotation | FamilyRotation, R: Tensor
    ) -> None:
        self.shared, self.index, self.R, self.count = shared, index, R, shared.count
        #: elements of an input of one row; 0 where one block is shared by all features
        self.features = 0 if R.shape[0] == self.count else R.shape[0] // self.count * R.shape[-1]
        self.layer, self.id = weakref.ref(layer), id(layer)
        self.base: nn.Module = layer.base_layer
        self.forward = self.base.__dict__.get("forward")
        self.rotation, self.memo, self.entry = rotation, rotation.memo, rotation.memo.entry
        self.parameters = rotation._parameters
        layer.__dict__["_again"] = self

    def forget(self) -> None:
        """The next call makes a plan."""
        layer = self.layer()
        if layer is not None and layer.__dict__.get("_again") is self:
            layer.__dict__["_again"] = None

    def __call__(self, x: Tensor) -> Any:
        """The layer's output for ``x``, or None when a plan has to be made. Gradients are off."""
        base, weight = self.base, self.parameters.get("weight")
        if base._forward_hooks or base._forward_pre_hooks or base.__dict__.get("forward") is not self.forward:
            return None
        if weight is None or self.rotation.training or looked_through_uncompiled():
            return None
        if not self.memo.still(self.entry, weight):
            return None
        shared = self.shared
        if self.index:
            thread = threading.get_ident()
            pending = shared._pending.get(thread)
            if pending is None or x is not pending.x or x._version != pending.version or pending.grad:
                return None
            rotated, served = pending.outputs.pop(self.id, (None, None))
            if not pending.outputs:
                shared._pending.pop(thread, None)
            if rotated is None or (served is not None and served is not self.memo.peek("R")):
                return None
            return self.run(rotated)
        elements = x.numel()
        if not 0 < elements < SHORT or not x.is_cpu or torch.is_autocast_enabled("cpu"):
            return None
        rotated_by = rotate_row if elements == self.features and free() else rotate_joined
        if self.count == 1:
            return self.run(rotated_by(x, self.R)[0])
        thread = threading.get_ident()
        if thread in shared._pending or x.is_inference():
            return None
        for again in shared._again:
            if again.memo.entry is not again.entry:
                return None
        outputs = rotated_by(x, self.R, self.count)
        others: dict[int, tuple[Tensor, Tensor | Operator | None]] = {}
        for again, y in zip(shared._again, outputs, strict=True):
            others[again.id] = (y, None)
        del others[self.id]
        shared._pending[thread] = _Pending(x, x._version, False, others)
        return self.run(outputs[0])

    def run(self, x: Tensor) -> Any:
        """The base for an input that is rotated already; a plain linear layer without the way through its module."""
        return call_base(self.base, self.forward, x)


class SharedInput:
    """Layers that get one input under one adapter, in the order in which the model calls them; often a single one.

    Nothing is assumed of the model: an output is used for the very tensor that it was made from, unchanged since, and
    only while the layer's own rotation is the one that made it. A call that does not fit (cross-attention, another
    order) pauses the sharing until the model's adapters change or its mode does; ``why_not`` names the call,
    and ``orthotune bench --explain`` shows it.
    """

    def __init__(self, layers: Sequence[OFTLayer], adapter: str) -> None:
        self._layers, self._adapter = [weakref.ref(layer) for layer in layers], adapter
        self._pending: dict[int, _Pending] = {}  # by thread
        #: the rotations of all layers and their join, valid while each layer serves the very tensor
        self._joined: tuple[list[Tensor], Tensor] | None = None
        #: what a call like the last one may do at once, one for each layer
        self._again: list[Again] = []
        #: why every layer rotates its own input for now, None while they share
        self.why_not: str | None = None
        for layer in layers:
            layer.slots[adapter].shared = self

    @property
    def count(self) -> int:
        """How many layers share the input."""
        return len(self._layers)

    def resume(self) -> None:
        """Share again: adapters or the mode have changed."""
        self._pending.clear()
        self._joined = self.why_not = None
        self._forget()

    def rotated(self, layer: OFTLayer, x: Tensor) -> Tensor | None:
        """``x`` rotated for ``layer``; None when the layer must do it for itself."""
        if self.why_not is not None or torch.compiler.is_compiling() or x.is_inference() or looked_through():
            return None  # inside compiled code and transforms there is no identity of tensors to go by
        thread = threading.get_ident()
        pending = self._pending.get(thread)
        if layer is not self._layers[0]():
            return None if pending is None else self._taken(pending, thread, layer, x)
        if pending is not None and pending.outputs:
            self._pause("the first layer was called again before the others")
            return None
        found = self._all(x)
        if found is None:
            return None
        rotations, outputs = found
        if len(rotations) == 1:
            return outputs[0]
        others = {
            id(kept()): (y, rotation.served())
            for kept, rotation, y in zip(self._layers[1:], rotations[1:], outputs[1:], strict=True)
        }
        self._pending[thread] = _Pending(x, x._version, torch.is_grad_enabled(), others)
        return outputs[0]

    def _taken(self, pending: _Pending, thread: int, layer: OFTLayer, x: Tensor) -> Tensor | None:
        """What the first layer has made for this one, if the input and the rotation are still those."""
        y, served = pending.outputs.pop(id(layer), (None, None))
        if not pending.outputs:
            self._pending.pop(thread, None)
        if y is None or pending.x is not x or pending.version != x._version or pending.grad is not _graph():
            self._pause("a layer was called with another input than the first one")
            return None
        rotation: Any = layer.oft_R[self._adapter]
        if Memo.can_hold(rotation.weight) and (served is None or rotation.current() is not served):
            return None  # a parameter has changed since the first layer was called
        return y

    def _all(self, x: Tensor) -> tuple[list[Rotation | FamilyRotation], Sequence[Tensor]] | None:
        """The rotations of all layers and ``x`` rotated by each; None when one of them is not ready."""
        graph, first = _graph(), None
        rotations: list[Rotation | FamilyRotation] = []
        blocks: list[Tensor] = []
        for kept in self._layers:
            layer = kept()
            if layer is None or layer.in_use.adapters != (self._adapter,) or layer.in_use.by_weight:
                return None
            rotation: Any = layer.oft_R[self._adapter]
            weight = rotation.weight
            first = weight if first is None else first
            if isinstance(rotation, FamilyRotation) and not rotation.shares(graph and weight.requires_grad):
                return None
            # Offloaded, sharded or partitioned at the moment: its own forward will bring it here.
            if is_zero(weight) or type(weight) is not type(first) or weight.device != x.device:
                return None
            if weight.shape != first.shape:
                return None
            # The others are compared with their parameters when their own layers are called.
            R = rotation.served() if rotations and not graph and Memo.can_hold(weight) else None
            rotations.append(rotation)
            made = rotation() if R is None or rotation.training else R
            if isinstance(made, Stage):
                made = made.R
            elif isinstance(made, Operator):
                return None
            blocks.append(made)
        if graph or torch.is_autocast_enabled(x.device.type) or not x.numel():
            return rotations, rotate_each(x, blocks)
        joint = self._joined
        if joint is None or any(a is not b for a, b in zip(joint[0], blocks, strict=True)):
            joint = self._joined = (blocks, joined(blocks))
            self._remember(rotations, joint[1])
        return rotations, rotate_joined(x, joint[1], len(blocks))

    def _remember(self, rotations: list[Rotation | FamilyRotation], R: Tensor) -> None:
        """Let the layers repeat this call at once while nothing has changed, see :class:`Again`."""
        self._forget()
        layers = [kept() for kept in self._layers]
        for layer, rotation in zip(layers, rotations, strict=True):
            if layer is None or layer.opaque() is not None or layer.in_use.outputs_change:
                return
            if rotation.training or rotation.memo.entry is None:
                return
        self._again = [
            Again(self, index, layer, rotation, R)
            for index, (layer, rotation) in enumerate(zip(layers, rotations, strict=True))
            if layer is not None
        ]

    def _forget(self) -> None:
        for again in self._again:
            again.forget()
        self._again = []

    def _pause(self, why: str) -> None:
        self._pending.clear()
        self._forget()
        self._joined, self.why_not = None, why


def _graph() -> bool:
    return torch.is_grad_enabled()


def share_inputs(model: nn.Module, adapter: str) -> None:
    """Let the layers of an adapter that get one input rotate it together, see :class:`SharedInput`.

    Together are neighbours of :data:`TOGETHER` whose rotations have one shape, without the query where the module says
    that it is cross-attention (``is_cross_attention`` of diffusers). Every other layer rotates its own input.
    """
    alone = {
        module
        for _, module in beside_adapters(model)
        if isinstance(module, OFTLayer)
        and module.shares_input
        and adapter in module.oft_R
        and module.slots[adapter].settings.spec.side == "in"
        and _shares(module.oft_R[adapter])
    }
    for _, parent in beside_adapters(model):
        children = parent._modules
        for names in TOGETHER:
            found = [children.get(child) for child in names]
            if getattr(parent, "is_cross_attention", False):
                found[0] = None
            layers = [layer for layer in found if isinstance(layer, OFTLayer) and layer in alone]
            together = [layer for layer in layers if _alike(layer, layers[-1], adapter)]
            if len(together) > 1:
                alone.difference_update(together)
                SharedInput(together, adapter)
    for layer in alone:
        SharedInput([layer], adapter)


def _shares(rotation: nn.Module) -> bool:
    return isinstance(rotation, Rotation) or (isinstance(rotation, FamilyRotation) and rotation.shares(trained=False))


def _alike(one: OFTLayer, other: OFTLayer, adapter: str) -> bool:
    a: Any
    b: Any
    a, b = one.oft_R[adapter], other.oft_R[adapter]
    if isinstance(a, FamilyRotation) or isinstance(b, FamilyRotation):
        return type(a) is type(b) and (a.layout, a.spec, a.copies) == (b.layout, b.spec, b.copies)
    return (a.layout, a.spec.batch_key, a.copies) == (b.layout, b.spec.batch_key, b.copies)
