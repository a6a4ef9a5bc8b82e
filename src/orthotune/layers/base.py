"""The bookkeeping of every adapted layer, written once: adapters, merging, switching off.

A layer kind states three things: its weight as matrices (:meth:`OFTLayer.matrices`), how rotated matrices become
parameters again (:meth:`OFTLayer.assemble`), and its forward where calling the base with rotated weights is not the
quickest one.

Order. The signal meets active adapters in the order of their names in ``active_adapters``: the input passes ``R_1``
first, the output passes ``M_1`` first, so ``W' = M_k .. M_1 W (R_1 .. R_k)^T``.
"""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from orthotune.errors import ConfigError, OrthotuneError, UnsupportedLayerError
from orthotune.kernels.autograd import looked_through
from orthotune.kernels.rotate_weight import Step, rotate_full, rotate_weight
from orthotune.layers.adapted_weight import adapted_weight
from orthotune.layers.merging import Merging
from orthotune.layers.mixed_batch import refuse_mixed_batch
from orthotune.layers.offloaded import at_hand, called, fetched, hosted
from orthotune.layers.parametrization.family import FamilyRotation
from orthotune.layers.parametrization.magnitude import Magnitude, Magnitudes
from orthotune.layers.parametrization.rotation import Rotation
from orthotune.layers.plan import PARTS, InUse, Plan, opaque, plan
from orthotune.layers.recomputation import Forwards, Under
from orthotune.layers.settings import BySlot, LayerSettings, Slot
from orthotune.layers.strength import Strengths
from orthotune.quantized.plain import require_plain
from orthotune.rotation.blocks import choose_layout
from orthotune.rotation.family import FamilyTransform
from orthotune.rotation.family_registry import family_of
from orthotune.rotation.placed import placed
from orthotune.rotation.spec import RotationSpec

#: Held while the weights of a base are replaced: another thread must neither call, read nor copy it.
CALLS = threading.RLock()


class OFTLayer(nn.Module, Strengths, Merging):
    """A base layer with any number of named adapters.

    Whoever looks at it sees the adapted layer: its weights are those that it computes with, every other attribute that
    a model asks for is the wrapped layer's own.
    """

    adapter_layer_names: tuple[str, ...] = ("oft_R", "oft_embedding_R", "oft_magnitude")
    other_param_names: tuple[str, ...] = ("slots",)
    container: ClassVar[str] = "oft_R"
    sides: ClassVar[tuple[str, ...]] = ("in", "out")
    #: forwards of bases that are known to be the product with the weight and nothing else
    plain_forwards: ClassVar[tuple[Callable[..., Any], ...]] = ()
    #: the input of several layers may be rotated in one product
    shares_input: ClassVar[bool] = False
    #: why stock PEFT computes something else for this layer, or None when it agrees
    beyond_peft: str | None = None

    def __init__(self, base_layer: nn.Module, adapter_name: str, settings: LayerSettings) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.oft_R = nn.ModuleDict({})
        self.oft_embedding_R = nn.ModuleDict({})
        self.oft_magnitude = Magnitudes()
        self.slots: dict[str, Slot] = {}
        self.forwards = Forwards()
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self.start_unmerged()
        self.prepare(settings)
        self.check_base(settings.layer)
        self.update_layer(adapter_name, settings)

    def prepare(self, settings: LayerSettings) -> None:
        """What a kind must know of its base before anything else; ``base_layer`` is there."""

    # What a kind states; a plain weight (out, in) is the default.

    def matrices(self) -> dict[str, Tensor]:
        """Part name -> weight matrix ``(out, in)`` or ``(copies, out, in)``, views of the base parameters."""
        return {"": self.get_base_layer().weight}

    def assemble(self, matrices: dict[str, Tensor]) -> dict[str, Tensor]:
        """Parameter name -> tensor in the parameter's own shape, the inverse of :meth:`matrices`."""
        return {"weight": matrices[""]}

    def shapes(self) -> dict[str, torch.Size]:
        """The shapes of :meth:`matrices`, for kinds that must compute their matrices first."""
        return {part: matrix.shape for part, matrix in self.matrices().items()}

    def base_parameters(self) -> dict[str, nn.Parameter]:
        """The base parameters that rotate, by their name below the innermost base layer; none when it is quantized."""
        return {"weight": self.get_base_layer().weight}

    @property
    def points(self) -> int:
        """How many points a kernel has: the columns of a matrix are ``(in, points)``; 1 for all but convolutions."""
        return 1

    def fitting(self, spec: RotationSpec) -> RotationSpec:
        """A spec as this kind of layer means it: without a kernel of several points, its layouts are one."""
        if spec.conv == "kernel" or (self.points > 1 and spec.side == "in"):
            return spec
        return replace(spec, conv="kernel")

    def _points_of(self, spec: RotationSpec) -> int:
        """The points of the kernel at which a rotation of the inputs acts alike; 1 where it mixes them."""
        return self.points if spec.conv == "channels" else 1

    def _features(self, shape: torch.Size, spec: RotationSpec) -> int:
        """How many features of a matrix ``(..., out, in)`` a spec rotates."""
        return int(shape[-2]) if spec.side == "out" else int(shape[-1]) // self._points_of(spec)

    def natural(self, weight: Tensor) -> Tensor:
        """A base parameter as ``(out, in, ...)``, and back."""
        return weight

    def own_path(self, x: Any) -> Plan:
        """The path of a call whose base is known to be plain, see :func:`orthotune.layers.plan.plan`."""
        return PARTS

    def opaque(self) -> str | None:
        """Why the base may do more than the product with its weight; None when it does not."""
        return opaque(self.base_layer, self.plain_forwards)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base, called with the weights that the layer computes with; a mixed batch has no one set of weights."""
        as_base = refuse_mixed_batch(self, kwargs)
        if as_base or self.path() == "base":
            return self.base_layer(*args, **kwargs)
        return self.call(args, kwargs)

    def check_base(self, layer: str) -> None:
        """Refuse a base whose weight cannot be read or written.

        Raises:
            UnsupportedLayerError: names the layer and its content.
        """
        for name, weight in self.base_parameters().items():
            owner, _, leaf = name.rpartition(".")
            require_plain(weight, layer, self.get_base_layer().get_submodule(owner), leaf)

    def device(self) -> torch.device:
        """Where the base weight is."""
        return next(iter(self.base_parameters().values())).device

    # Adapters.

    def update_layer(self, adapter_name: str, settings: LayerSettings, inference_mode: bool = False) -> None:
        """Add (or start afresh) the adapter ``adapter_name``.

        Raises:
            UnsupportedLayerError: the side has no meaning for this layer, or it cannot hold a frozen map.
            BlockSizeError: the size does not fit.
        """
        settings = replace(settings, spec=self.fitting(settings.spec))
        if settings.frozen is not None:
            self._hold_frozen(adapter_name, settings)
        else:
            self._hold_rotation(adapter_name, settings)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def _hold_rotation(self, name: str, settings: LayerSettings) -> None:
        if settings.spec.side not in self.sides:
            raise UnsupportedLayerError(
                f"side='{settings.spec.side}' for layer '{settings.layer}' ({type(self.get_base_layer()).__name__})",
                needed=f"side='{self.sides[0]}', the only one with a meaning for this layer",
                do="Exclude the layer or change the side",
            )
        rotations: dict[str, Any] = {}
        outputs, resized = 0, None
        for part, shape in self.shapes().items():
            rotations[part], resized = self._new_rotation(shape, settings)
            outputs += self.output_count(shape)
        getattr(self, self.container)[name] = rotations[""] if "" in rotations else nn.ModuleDict(rotations)
        self.oft_magnitude.pop(name) if name in self.oft_magnitude else None
        if settings.spec.magnitude:
            self.oft_magnitude[name] = Magnitude(torch.ones(outputs, dtype=self._adapter_dtype()))
        chosen = next(iter(rotations.values())).spec
        layout = next(iter(rotations.values())).layout
        self.slots[name] = Slot(replace(settings, spec=chosen), blocks=layout.block_count, resized=resized)
        self.reset_oft_parameters(name, settings.init_weights)
        self._move_adapter_to_device_of_base_layer(name)
        self._take_basis(name)

    @torch.no_grad()
    def _take_basis(self, name: str) -> None:
        """Compute the frozen bases of a transform that has some, from the weight without any adapter."""
        bases = {part: one.basis for part, one in self.rotations(name).items() if isinstance(one, FamilyRotation)}
        if all(basis is None for basis in bases.values()):
            return
        with at_hand(self.base_layer), self.unmerged():
            for part, matrix in self.matrices().items():
                rotation, basis = self.rotations(name)[part], bases[part]
                if "meta" in (matrix.device.type, rotation.weight.device.type):
                    continue  # a file brings it, or a merge has the weight; a call without either is refused
                assert isinstance(rotation, FamilyRotation) and basis is not None
                points = self._points_of(rotation.spec)
                if points > 1:  # each point of the kernel gives rows of its own
                    matrix = matrix.unflatten(-1, (-1, points)).mT.flatten(0, 1)
                basis.copy_(rotation.kind.basis_of(rotation.spec, matrix))

    def _hold_frozen(self, name: str, settings: LayerSettings) -> None:
        self.check_frozen(settings)
        for holder in (self.oft_R, self.oft_embedding_R, self.oft_magnitude):
            if name in holder:
                del holder[name]
        side = getattr(settings.frozen, "side", settings.spec.side)
        self.slots[name] = Slot(replace(settings, spec=replace(settings.spec, side=side)))

    @classmethod
    def check_frozen(cls, settings: LayerSettings) -> None:
        """Refuse a frozen map for a kind that holds none.

        Raises:
            UnsupportedLayerError: names the layer and the way out.
        """
        raise UnsupportedLayerError(
            f"layer '{settings.layer}' ({cls.__name__})",
            got="an adapter that can only be applied to a plain weight",
            needed="a linear layer or a convolution that is not quantized",
            do="Merge the adapter into the files of the base with `orthotune export --to dense`",
        )

    def _new_rotation(self, shape: torch.Size, settings: LayerSettings) -> tuple[nn.Module, str | None]:
        spec = settings.spec
        if (kind := family_of(spec.transform)) is not None:
            return self._new_transform(kind, shape, settings)
        layout, gave_way = choose_layout(
            self._features(shape, spec), r=settings.r, block_size=0 if settings.r else spec.block_size,
            shared=spec.shared, fallback=settings.fallback, layer=settings.layer,
        )  # fmt: skip
        wanted = f"r={settings.r}" if settings.r else f"block_size={spec.block_size}"
        resized = f"{wanted} -> {layout.block_count} x {layout.block_size}" if gave_way else None
        copies = shape[0] if len(shape) == 3 else 1
        chosen = replace(spec, block_size=layout.block_size, dtype=self._adapter_dtype())
        return Rotation(layout, chosen, copies), resized

    def _new_transform(
        self, kind: type[FamilyTransform], shape: torch.Size, settings: LayerSettings
    ) -> tuple[nn.Module, str | None]:
        features = self._features(shape, settings.spec)
        spec = replace(settings.spec, dtype=self._adapter_dtype())
        spec, gave_way = kind.choose(spec, features, settings.r, settings.fallback, settings.layer)
        if reason := kind.refuse_start(spec, settings.init_weights):
            raise ConfigError(
                f"starting the transform '{spec.transform}' from the identity in layer '{settings.layer}'", got=reason,
                do="Choose an even number, or init_weights=False for a random start",
            )  # fmt: skip
        sizes = kind.sizes(features, spec)
        wanted = f"r={settings.r}" if settings.r else f"block_size={settings.spec.block_size}"
        resized = f"{wanted} -> {sizes.block_count} x {sizes.block_size}" if gave_way else None
        return FamilyRotation(kind, sizes, spec, shape[0] if len(shape) == 3 else 1), resized

    @staticmethod
    def output_count(shape: torch.Size) -> int:
        """Number of elements of a magnitude for a matrix of this shape."""
        return shape[:-1].numel()

    def _adapter_dtype(self) -> torch.dtype:
        dtypes = {weight.dtype for weight in self.base_parameters().values()}
        return torch.float64 if torch.float64 in dtypes else torch.float32

    def reset_oft_parameters(self, adapter_name: str, init_weights: bool) -> None:
        """Identity (``True``), or random rotations of standard deviation 0.1 in the stored parameters (``False``)."""
        for rotation in self.rotations(adapter_name).values():
            if isinstance(rotation, FamilyRotation):
                if rotation.weight.device.type != "meta":
                    rotation.kind.start(rotation.spec, rotation.weight, init_weights)
            elif init_weights:
                nn.init.zeros_(rotation.weight)
            else:
                nn.init.normal_(rotation.weight, std=0.1)

    def rotations(self, adapter_name: str) -> dict[str, Rotation]:
        """Part name -> rotation of an adapter; empty when this layer does not have it."""
        found = getattr(self, self.container)
        if adapter_name not in found:
            return {}
        module = found[adapter_name]
        return cast(dict[str, Rotation], dict(module.items()) if isinstance(module, nn.ModuleDict) else {"": module})

    def frozen_map(self, adapter_name: str) -> Any:
        """The frozen map that an adapter is at this layer, None when it is a rotation or not there."""
        slot = self.slots.get(adapter_name)
        return None if slot is None else slot.settings.frozen

    def stored(self, adapter_name: str) -> list[nn.Parameter]:
        """The parameters of an adapter in this layer."""
        magnitude = [self.oft_magnitude[adapter_name].weight] if adapter_name in self.oft_magnitude else []
        return [rotation.weight for rotation in self.rotations(adapter_name).values()] + magnitude

    def add_magnitude(self, adapter_name: str) -> None:
        """Add a magnitude of 1 for each output neuron to an adapter; an existing magnitude is unchanged."""
        slot = self.slots[adapter_name]
        if adapter_name not in self.oft_magnitude:
            like = next(iter(self.rotations(adapter_name).values())).weight
            outputs = sum(self.output_count(shape) for shape in self.shapes().values())
            self.oft_magnitude[adapter_name] = Magnitude(torch.ones(outputs, dtype=like.dtype, device=like.device))
        slot.settings = replace(slot.settings, spec=replace(slot.settings.spec, magnitude=True))
        self.changed()

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # Unlike PEFT's, this never lowers the dtype: rotations are float32 whatever the base is.
        target = device or self.device()
        held = self.rotations(adapter_name).values()
        bases = [one.basis for one in held if isinstance(one, FamilyRotation) and one.basis is not None]
        for tensor in [*self.stored(adapter_name), *bases]:
            # Not on the meta device, on which a base can be whose weights are loaded one by one: the values would be
            # lost.
            if "meta" not in (tensor.device.type, target.type) and tensor.device != target:
                tensor.data = tensor.data.to(target)

    # What PEFT's tables and older code call by these names.

    @property
    def oft_settings(self) -> Mapping[str, LayerSettings]:
        """Adapter -> its settings, with the block size that was chosen."""
        return BySlot(self.slots, lambda slot: slot.settings)

    @property
    def oft_block_size(self) -> Mapping[str, int]:
        """Adapter -> size of a block; 0 for a frozen map."""
        return BySlot(self.slots, lambda slot: slot.settings.spec.block_size)

    @property
    def r(self) -> Mapping[str, int]:
        """Adapter -> number of blocks; 0 for a frozen map."""
        return BySlot(self.slots, lambda slot: slot.blocks)

    @property
    def resized(self) -> Mapping[str, str]:
        """Adapter -> how the wanted block size gave way, where it did."""
        return {name: slot.resized for name, slot in self.slots.items() if slot.resized is not None}

    @property
    def in_features(self) -> int:
        """The width of the input, as PEFT's layers say it: channels of a convolution, tokens of an embedding."""
        return int(next(iter(self.shapes().values()))[-1])

    @property
    def out_features(self) -> int:
        """The width of the output."""
        return int(next(iter(self.shapes().values()))[-2])

    # Which adapters act. Three things of PEFT's protocol decide it, and each of them ends what was derived from it.

    def changed(self) -> None:
        """Adapters, strengths, merges or switches have changed: what was derived from them is derived anew."""
        self.__dict__["_in_use"] = self.__dict__["_again"] = None
        for slot in self.__dict__.get("slots", {}).values():
            if slot.shared is not None:
                slot.shared.resume()

    @property
    def _disable_adapters(self) -> bool:
        return bool(self.__dict__.get("_disabled", False))

    @_disable_adapters.setter
    def _disable_adapters(self, disabled: bool) -> None:
        self.__dict__["_disabled"] = disabled
        self.changed()

    @property
    def _active_adapter(self) -> str | list[str]:
        return cast("str | list[str]", self.__dict__.get("_active", "default"))

    @_active_adapter.setter
    def _active_adapter(self, names: str | list[str]) -> None:
        self.__dict__["_active"] = names
        self.changed()

    @property
    def merged_adapters(self) -> list[str]:
        """Adapters that are merged into the base weight, in the order in which they act."""
        return cast("list[str]", self.__dict__.get("_merged", []))

    @merged_adapters.setter
    def merged_adapters(self, names: list[str]) -> None:
        self.__dict__["_merged"] = names
        self.changed()

    def enable_adapters(self, enabled: bool) -> None:
        """Switch the adapters of this layer on or off; what was frozen before stays frozen afterwards."""
        own = [p for name in self.adapter_layer_names for p in getattr(self, name).parameters()]
        trained = self.__dict__.get("_trained")
        if not enabled and not self._disable_adapters:
            trained = [p for p in own if p.requires_grad]
        super().enable_adapters(enabled)
        self.__dict__["_trained"] = None if enabled else trained
        for p in own if enabled and trained is not None else ():
            p.requires_grad_(any(p is one for one in trained or ()))

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Make adapters active, trainable unless ``inference_mode``."""
        self.__dict__["_trained"] = None  # what was trained before a switch-off is no longer what will be
        super().set_adapter(adapter_names, inference_mode=inference_mode)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove an adapter and everything that is cached for it."""
        self.changed()
        super().delete_adapter(adapter_name)
        self.changed()

    @property
    def in_use(self) -> InUse:
        """What the forward has to apply itself, derived once until something changes."""
        if torch.compiler.is_compiling():
            return self._derive()  # whether it was derived before is nothing that compiled code should depend on
        found = self.__dict__.get("_in_use")
        if found is None:
            found = self.__dict__["_in_use"] = self._derive()
        return cast(InUse, found)

    def _derive(self) -> InUse:
        if self._disable_adapters:
            if self.merged:
                self.unmerge()
            return InUse((), False, False, "adapters are disabled")
        waiting = [name for name in self.active_adapters if name in self.slots and name not in self.merged_adapters]
        if not waiting:
            why = f"{', '.join(self.merged_adapters)} merged" if self.merged_adapters else "no adapter is active here"
            return InUse((), False, False, why)
        names = tuple(self.in_order([*self.merged_adapters, *waiting]))
        specs = [self.slots[name].settings.spec for name in names]
        frozen = [name for name in names if self.frozen_map(name) is not None]
        why = f"'{frozen[0]}' is a frozen map of the entire weight" if frozen else ""
        if self.merged_adapters:
            why = f"{self.merged_adapters} merged, {waiting} not: together they start from the original weight"
        changes = any(spec.side == "out" or name in self.oft_magnitude for name, spec in zip(names, specs, strict=True))
        return InUse(names, bool(why), changes, why)

    def path(self, x: Any = None) -> str:
        """The path of this call, see :mod:`orthotune.layers.plan`.

        Raises:
            OrthotuneError: activation checkpointing repeats a forward under other adapters than the first one's.
        """
        if self.training and not torch.compiler.is_compiling():
            self._note_forward()
        return plan(self, x).path

    def _note_forward(self) -> None:
        use = self.in_use
        now = Under(tuple((name, self.strength(name)) for name in use.adapters), tuple(self.merged_adapters))
        self.forwards.note(next((slot.settings.layer for slot in self.slots.values()), ""), now)

    def in_order(self, names: list[str]) -> list[str]:
        """Adapters in the order in which they act: active ones in the order of activation, others as given."""
        active = iter([name for name in self.active_adapters if name in names])
        return [next(active) if name in self.active_adapters else name for name in dict.fromkeys(names)]

    def adapters_in_use(self) -> list[str]:
        """Adapters that the forward applies, none when all are merged or disabled."""
        return list(self.in_use.adapters)

    # The adapted weight.

    def rotated_matrices(
        self, adapters: list[str], every_block: bool = False, rounded: bool = False
    ) -> dict[str, Tensor]:
        """Parameter name -> ``W'`` under ``adapters``, differentiable, in float32 or rounded to the base's dtype.

        ``every_block`` drops no block, see :class:`Rotation`. ``rounded`` is for merging: in the base's dtype, computed
        run by run without a float32 copy of the full weight, and without a gradient.
        """
        if any(self.frozen_map(name) is not None for name in adapters):
            return self._by_maps(adapters, every_block, rounded)
        apply = rotate_weight if rounded and not looked_through() else rotate_full
        matrices = self.matrices()
        with torch.autocast(next(iter(matrices.values())).device.type, enabled=False):
            return self.assemble(
                {part: apply(W, self.steps(part, adapters, every_block)) for part, W in matrices.items()}
            )

    def steps(self, part: str, adapters: list[str], every_block: bool = False) -> list[Step]:
        """What the adapters do to the matrix of a part, in the order in which it acts."""
        steps = [
            Step("columns", self.rotations(name)[part](every_block).mT, self._points_of(self.slots[name].settings.spec))
            for name in reversed(adapters)
            if self.slots[name].settings.spec.side == "in"
        ]
        for name in adapters:
            if self.slots[name].settings.spec.side == "out":
                steps.append(Step("rows", self.rotations(name)[part](every_block)))
            if (scale := self.magnitude(name, part)) is not None:
                steps.append(Step("scale_rows", scale))
        return steps

    def _by_maps(self, adapters: list[str], every_block: bool, rounded: bool) -> dict[str, Tensor]:
        ((name, base),) = self.base_parameters().items()
        W = self.natural(base)
        with torch.autocast(W.device.type, enabled=False):
            for adapter in self._sequence(adapters):
                frozen = self.frozen_map(adapter)
                if frozen is not None:
                    W = placed(frozen, W.device).apply(W, self.strength(adapter).t)
                else:
                    W = rotate_full(W.flatten(1), self.steps("", [adapter], every_block)).view(W.shape)
        W = self.natural(W)
        return {name: W.to(base.dtype) if rounded else W}

    def _sequence(self, adapters: list[str]) -> list[str]:
        """The order in which adapters act on the weight: those of the inputs from the last to the first.

        Raises:
            UnsupportedLayerError: one scales the rows of a weight that another one before it mixes.
        """
        sides = {name: self.slots[name].settings.spec.side for name in adapters}
        mixed = False
        for name in adapters:
            scales = name in self.oft_magnitude or getattr(self.frozen_map(name), "magnitude", None) is not None
            if mixed and scales and sides[name] == "in":
                raise UnsupportedLayerError(
                    f"adapters {adapters} together on layer '{self.slots[name].settings.layer}'",
                    got=f"'{name}', which rotates inputs and scales outputs, after one that rotates outputs",
                    do="Merge the first one, or activate them in the other order",
                )
            mixed |= sides[name] == "out"
        inward = [name for name in reversed(adapters) if sides[name] == "in"]
        return inward + [name for name in adapters if sides[name] == "out"]

    def frozen_weight(self, adapter_name: str, weight: Tensor) -> Tensor:
        """The float weight that one frozen map makes of ``weight``, in the shape of the base parameter."""
        W = self.natural(weight)
        frozen = placed(self.slots[adapter_name].settings.frozen, W.device)
        return self.natural(frozen.apply(W, self.strength(adapter_name).t))

    def magnitude(self, adapter_name: str, part: str = "") -> Tensor | None:
        """Scale of each output neuron of a part ``(copies * out,)``, or None when the adapter has none."""
        if adapter_name not in self.oft_magnitude:
            return None
        scales = fetched(self.oft_magnitude[adapter_name], "weight")
        if part:
            sizes = {name: self.output_count(shape) for name, shape in self.shapes().items()}
            start = sum(size for name, size in list(sizes.items())[: list(sizes).index(part)])
            scales = scales[start : start + sizes[part]]
        return self.scale_at(adapter_name, scales)

    def adapted(self, adapters: list[str], rounded: bool = False) -> dict[str, Tensor]:
        """Parameter name -> the weight that the layer computes with, in the base's dtype; differentiable.

        Adapters that are merged are part of ``adapters`` and start from the original weight, at the strengths that
        they were merged at.
        """
        with ExitStack() as stack:
            if self.merged_adapters:
                stack.enter_context(self.unmerged())
                stack.enter_context(self.at_strengths(self.merged_strengths()))
            dtypes = {name: weight.dtype for name, weight in self.base_parameters().items()}
            found = self.rotated_matrices(adapters, rounded=rounded)
        return {name: W.to(dtypes.get(name, W.dtype)) for name, W in found.items()}

    def get_delta_weight(self, adapter: str) -> Tensor:
        """``W' - W`` of one adapter, in the shape of the base weight, float32 (float64 for float64 weights).

        Raises:
            OrthotuneError: the layer has several weights, as attention has.
        """
        with torch.no_grad(), self.unmerged():
            rotated, weights = self.rotated_matrices([adapter], every_block=True), self.assemble(self.matrices())
        if len(rotated) != 1:
            raise OrthotuneError(
                f"one delta weight of a layer that has {sorted(rotated)}", do="Use rotated_matrices() instead"
            )
        (weight,), (original,) = rotated.values(), weights.values()
        return weight - original.to(weight.dtype)

    def no_lora_form(self, added: bool = False) -> str | None:
        """Why no LoRA can hold this layer's change; None where ``W' - W`` is one matrix that a LoRA adds to ``W``.

        Args:
            added: the tool adds the product of the factors to the weight, instead of running them as layers.
        """
        return None

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """Whether PEFT's ``convert_to_lora`` takes the adapter here; without that adapter there is nothing to take."""
        reason = self.no_lora_form() if adapter_name in self.slots else None
        if reason is not None:  # PEFT's refusal names the class of the layer alone
            layer = self.slots[adapter_name].settings.layer
            warnings.warn(f"No LoRA can stand for the adapter at layer '{layer}': it is {reason}.", stacklevel=2)
        return reason is None

    # Calls of the base with the adapted weight instead of its own.

    def call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], adapters: tuple[str, ...] | None = None) -> Any:
        """The base's own forward and hooks on the original input, with the weights that the layer computes with."""
        if torch.compiler.is_compiling():
            return self._call(args, kwargs, adapters)
        with CALLS:
            return self._call(args, kwargs, adapters)

    def _call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], adapters: tuple[str, ...] | None) -> Any:
        wrappers, base = self.inside()
        # The host's wrapper would bring the base's own weights: it is opened by hand, and the forward inside is called.
        with at_hand(self.base_layer) if any(map(hosted, [*wrappers, base])) else nullcontext():
            weights = self.adapted(list(self.in_use.adapters if adapters is None else adapters))
            for wrapper in wrappers:
                weights |= wrapper.adapted(wrapper.adapters_in_use()) if wrapper.path() != "base" else {}
            prefix = _path_inside(base)
            return called(base, {prefix + name: W for name, W in weights.items()}, args, kwargs)

    def inside(self) -> tuple[list[OFTLayer], nn.Module]:
        """Layers inside this one whose weights come with its own in one call, and the module that is called."""
        return [], self.base_layer

    # What others see of the layer.

    @property
    def weight(self) -> Tensor:
        """The weight that the layer computes with: the base's own, or rotated and scaled when it is first used."""
        return self.seen("weight")

    @property
    def bias(self) -> Tensor | None:
        """The bias of the base, which no adapter changes."""
        return cast("Tensor | None", self.get_base_layer().bias)

    def seen(self, name: str) -> Tensor:
        """A weight of the base, by the name of its parameter, as the layer computes with it."""
        if self.training and not torch.compiler.is_compiling():
            self._note_forward()
        names = list(self.in_use.adapters)  # first: it takes a merge out of the base when adapters are disabled
        base = self.base_parameters()[name]
        if not names:
            return base
        compute = _reading(self, name, names)
        if torch.compiler.is_compiling() or looked_through():
            return compute()
        inputs: list[Tensor] = [p for adapter in names for p in self.stored(adapter)]
        return adapted_weight(base, compute, [*inputs, base], self.slots[names[0]].settings.layer)

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__.get("_modules", {})
        if name in modules:  # asked several times in every forward
            return modules[name]
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Not set yet, being unpickled, or what a host has noted about the wrapped module, as its hooks.
            if name.startswith(("_", "ds_")) or "base_layer" not in modules:
                raise
            base = self.get_base_layer()
            if isinstance(base.__dict__.get("_parameters", {}).get(name), Tensor):
                # Of several wrappers of one module, each has a parameter of its own.
                return self.seen(name) if name in self.base_parameters() else getattr(self.base_layer, name)
            return getattr(base, name)

    # Copies; each waits for the end of a call that has replaced the weights of the base.

    def _replicate_for_data_parallel(self) -> Any:
        replica = super()._replicate_for_data_parallel()
        replica.__dict__.update(_in_use=None, _again=None, slots=self._copied_slots())
        return replica

    def _copied_slots(self) -> dict[str, Slot]:
        return {name: replace(slot, shared=None) for name, slot in self.slots.items()}

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The parameters that are stored, see ``nn.Module.state_dict``."""
        with CALLS:
            return super().state_dict(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        made = memo[id(self)] = type(self).__new__(type(self))
        with CALLS:
            made.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return made

    def __getstate__(self) -> dict[str, Any]:
        # Pickle comes to the base and to the rotations later, maybe in the middle of a call: what has to be in them is
        # part of the layer's own state.
        with CALLS:
            stored = dict(self.base_parameters())
            return {**self.__dict__, "_in_use": None, "_again": None, "slots": self._copied_slots(), "_stored": stored}

    def __setstate__(self, state: dict[str, Any]) -> None:
        stored = state.get("_stored", {})
        super().__setstate__({name: value for name, value in state.items() if name != "_stored"})
        if "_parameters" in self.get_base_layer().__dict__:  # a base that leads to this layer gets its state after it
            self._put(stored)
            for name, slot in self.slots.items():
                for rotation in self.rotations(name).values():
                    rotation.strength = slot.strength

    def train(self, mode: bool = True) -> Any:
        self.changed()
        return super().train(mode)

    def __repr__(self) -> str:
        return "orthotune." + super().__repr__()


def _path_inside(module: Any) -> str:
    """Where the innermost base is, seen from ``module``."""
    path = ""
    while hasattr(module, "base_layer"):
        module, path = module.base_layer, path + "base_layer."
    return path


def _reading(layer: OFTLayer, name: str, adapters: list[str]) -> Callable[[], Tensor]:
    """The adapted weight by the parameters of now: ``functional_call`` has put others back by a backward."""
    places: list[tuple[dict[str, Any], str]] = []
    for adapter in adapters:
        places += [(rotation._parameters, "weight") for rotation in layer.rotations(adapter).values()]
        places += [(layer.oft_magnitude[adapter]._parameters, "weight")] if adapter in layer.oft_magnitude else []
    for path in layer.base_parameters():
        owner, _, leaf = path.rpartition(".")
        places.append((layer.get_base_layer().get_submodule(owner)._parameters, leaf))
    places = [(holder, leaf) for holder, leaf in places if leaf in holder]  # a replica has none
    then = [holder[leaf] for holder, leaf in places]

    def put(parameters: list[Any]) -> None:
        for (holder, leaf), parameter in zip(places, parameters, strict=True):
            holder[leaf] = parameter

    def compute() -> Tensor:
        with CALLS:
            return at_once()

    def at_once() -> Tensor:
        now = [holder[leaf] for holder, leaf in places]
        if all(one is other for one, other in zip(now, then, strict=True)):
            return layer.adapted(adapters)[name]
        put(then)
        try:
            return layer.adapted(adapters)[name]
        finally:
            put(now)

    return at_once if torch.compiler.is_compiling() else compute
