"""Projections of one input, as query, key and value: the first that is asked turns the input for all of them."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor

from orthotune.kernels.rotate import joined, rotate_each, rotate_joined
from orthotune.layers.rotation_cache import RotationCache
from orthotune.layers.rotation_module import Rotation
from orthotune.layers.sharding import is_zero

if TYPE_CHECKING:
    from orthotune.layers.linear import Linear


class _Turned(NamedTuple):
    """What the first has made, and for which input."""

    x: Tensor
    version: int
    grad: bool
    outputs: dict[int, Tensor]

    def made_for(self, x: Tensor) -> bool:
        return self.x is x and self.version == x._version and self.grad is torch.is_grad_enabled()


class _Standing(NamedTuple):
    """The rotations of all layers in one tensor, and by what to tell that they stand: for evaluation and decoding."""

    R: Tensor
    device_type: str
    known_by: list[tuple[Linear, Rotation, RotationCache[Tensor], tuple[Any, ...]]]

    def stands(self, name: str) -> bool:
        for layer, rotation, cache, entry in self.known_by:
            weight = rotation._parameters["weight"]
            if (
                cast(Any, cache._entry) is not entry
                or cache._doubtful
                or weight is None
                or weight._version != entry[0]
                or weight.data_ptr() != entry[1]
                or layer._disable_adapters
                or layer.merged_adapters
                or (layer._active_adapter != [name] and layer._active_adapter != name)
            ):
                return False
        return True


class SharedInput:
    """Layers that get one input under one adapter, in the order in which the model calls them; often a single one.

    Nothing is assumed of the model: an output is used for the very tensor that it was made from, unchanged since. The
    first call that does not fit (cross-attention, another order) ends the sharing for good: each layer goes on alone.
    """

    def __init__(self, layers: Sequence[Linear], name: str) -> None:
        self._layers, self._name = [weakref.ref(layer) for layer in layers], name
        self._turned: _Turned | None = None
        self._standing: _Standing | None = None
        for layer in layers:
            layer.shared_inputs[name] = self

    def standing(self, layer: Linear, x: Tensor) -> Tensor | None:
        """:meth:`rotated` by what an earlier call without gradients left standing; None when that does not apply."""
        kept = self._standing
        if (
            kept is None
            or torch.is_grad_enabled()
            or torch.compiler.is_compiling()
            or x.is_inference()
            or torch.is_autocast_enabled(kept.device_type)
        ):
            return None
        if self._turned is not None:
            return self._taken(layer, x)
        if layer is not kept.known_by[0][0] or not x.numel():
            return None
        if not kept.stands(self._name):
            self._standing = None
            return None
        return self._keep(x, rotate_joined(x, kept.R, len(kept.known_by)))

    def rotated(self, layer: Linear, x: Tensor) -> Tensor | None:
        """``x`` turned for ``layer``; None when the layer must do it for itself."""
        if torch.compiler.is_compiling() or x.is_inference():  # no identity, no version to go by
            return None
        if layer is not self._layers[0]():
            if self._turned is None:
                return None
            if (y := self._taken(layer, x)) is None:
                self._end()
            return y
        if self._turned is not None:  # somebody did not come for it
            self._end()
            return None
        found = self._found(x)
        return None if found is None else self._keep(x, found)

    def forget(self) -> None:
        """The next input is turned anew: a rotation has changed without its parameter."""
        self._turned = self._standing = None

    def _keep(self, x: Tensor, found: Sequence[Tensor]) -> Tensor:
        """The first result, and the others for their layers."""
        if len(found) > 1:
            others = {id(kept()): y for kept, y in zip(self._layers[1:], found[1:], strict=True)}
            self._turned = _Turned(x, x._version, torch.is_grad_enabled(), others)
        return found[0]

    def _taken(self, layer: Linear, x: Tensor) -> Tensor | None:
        turned = self._turned
        if turned is None or not turned.made_for(x):
            return None
        y = turned.outputs.pop(id(layer), None)
        if not turned.outputs:
            self._turned = None
        return y

    def _found(self, x: Tensor) -> Sequence[Tensor] | None:
        """``x`` turned for every layer; None when one of them is not ready for it."""
        known_by: list[tuple[Linear, Rotation, RotationCache[Tensor], Any]] = []
        rotations, own, scaled = [], None, False
        for layer in (kept() for kept in self._layers):
            if layer is None or layer._disable_adapters or layer.adapters_in_use() != [self._name]:
                return None
            rotation = cast(Rotation, layer.oft_R[self._name])
            weight = rotation.weight
            own = weight if own is None else own
            # Offloaded, sharded or partitioned at the moment: its own forward will bring it here.
            if (
                is_zero(weight)
                or type(weight) is not type(own)
                or weight.device != x.device
                or weight.shape != own.shape
            ):
                return None
            rotations.append(rotation())
            scaled |= self._name in layer.oft_magnitude
            known_by.append((layer, rotation, rotation.cache, rotation.cache._entry))
        if not scaled and not torch.is_grad_enabled():
            R = joined(rotations)
            fresh = all(entry is not None and entry[2] is R for R, (*_, entry) in zip(rotations, known_by, strict=True))
            if fresh and R.data_ptr() == rotations[0].data_ptr():  # no second copy is kept
                self._standing = _Standing(R, R.device.type, known_by)
        return rotate_each(x, rotations)

    def _end(self) -> None:
        """Each layer alone from now on."""
        for layer in (kept() for kept in self._layers):
            if layer is not None and layer.shared_inputs.get(self._name) is self:
                SharedInput([layer], self._name)
        self._turned = self._standing = None
