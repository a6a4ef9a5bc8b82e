"""The bookkeeping of every rotated layer, written once: adapters, merging, switching off.

A layer kind states three things: its weight as matrices (:meth:`OFTLayer.matrices`), how turned matrices become
parameters again (:meth:`OFTLayer.assemble`), and its forward.

Order. The signal meets active adapters in the order of their names in ``active_adapters``: the input passes ``R_1``
first, the output passes ``M_1`` first, so ``W' = M_k .. M_1 W (R_1 .. R_k)^T``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from orthotune.errors import OrthotuneError, UnsupportedLayerError
from orthotune.kernels.from_parameters import map_of
from orthotune.kernels.turn_weight import Step, turn_weight, turn_whole
from orthotune.layers.merging import Merging
from orthotune.layers.rotation_module import Rotation
from orthotune.layers.settings import LayerSettings
from orthotune.layers.strength import Strengths
from orthotune.quantized.plain import require_plain
from orthotune.rotation.blocks import choose_layout
from orthotune.rotation.frozen import FrozenMap


class OFTLayer(nn.Module, Strengths, Merging):
    """A base layer with any number of named rotations."""

    adapter_layer_names: tuple[str, ...] = ("oft_R", "oft_embedding_R", "oft_magnitude")
    other_param_names: tuple[str, ...] = ("r", "oft_block_size", "oft_settings", "oft_strength", "resized")
    container = "oft_R"
    sides: tuple[str, ...] = ("in", "out")
    #: why stock PEFT computes something else for this layer, or None when it agrees
    beyond_peft: str | None = None

    def __init__(self, base_layer: nn.Module, adapter_name: str, settings: LayerSettings) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.oft_R = nn.ModuleDict({})
        self.oft_embedding_R = nn.ModuleDict({})
        self.oft_magnitude = nn.ParameterDict({})
        self.r: dict[str, int] = {}
        self.oft_block_size: dict[str, int] = {}
        self.oft_settings: dict[str, LayerSettings] = {}
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self.start_unmerged()
        self.start_whole()
        self.resized: dict[str, str] = {}
        self.check_base(settings.layer)
        self.update_layer(adapter_name, settings)

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
        """The base parameters that turn, by their name below the innermost base layer; none when it is quantized."""
        return {"weight": self.get_base_layer().weight}

    def check_base(self, layer: str) -> None:
        """Refuse a base whose weight cannot be read or written.

        Raises:
            UnsupportedLayerError: names the layer and what it holds.
        """
        for weight in self.base_parameters().values():
            require_plain(weight, layer, self.get_base_layer())

    def device(self) -> torch.device:
        """Where the base weight is."""
        return next(iter(self.base_parameters().values())).device

    # Adapters.

    def update_layer(self, adapter_name: str, settings: LayerSettings, inference_mode: bool = False) -> None:
        """Add (or start afresh) the adapter ``adapter_name``.

        Raises:
            UnsupportedLayerError: the side has no meaning for this layer.
            BlockSizeError: the size does not fit.
        """
        if settings.frozen is not None:
            from orthotune.layers.transformed import admit

            admit(self, settings)
            self.update_layer(adapter_name, settings, inference_mode)
            return
        if settings.spec.side not in self.sides:
            raise UnsupportedLayerError(
                f"side='{settings.spec.side}' for layer '{settings.layer}' ({type(self.get_base_layer()).__name__})",
                needed=f"side='{self.sides[0]}', the only one with a meaning for this layer",
                do="Exclude the layer or change the side",
            )
        self.oft_strength.pop(adapter_name, None)
        rotations, outputs = {}, 0
        for part, shape in self.shapes().items():
            rotations[part] = self._new_rotation(adapter_name, shape, settings)
            outputs += self._output_count(shape)
        getattr(self, self.container)[adapter_name] = rotations[""] if "" in rotations else nn.ModuleDict(rotations)
        if settings.spec.magnitude:
            self.oft_magnitude[adapter_name] = nn.Parameter(torch.ones(outputs, dtype=self._adapter_dtype()))
        first = next(iter(rotations.values())).layout
        self.r[adapter_name], self.oft_block_size[adapter_name] = first.block_count, first.block_size
        spec = replace(settings.spec, block_size=first.block_size, dtype=self._adapter_dtype())
        self.oft_settings[adapter_name] = replace(settings, spec=spec, r=0)
        self.reset_oft_parameters(adapter_name, settings.init_weights)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def _new_rotation(self, adapter_name: str, shape: torch.Size, settings: LayerSettings) -> Rotation:
        spec = settings.spec
        features = shape[-1 if spec.side == "in" else -2]
        layout, changed = choose_layout(
            features, r=settings.r, block_size=spec.block_size, shared=spec.shared,
            fallback=settings.fallback, layer=settings.layer,
        )  # fmt: skip
        if changed:
            wanted = f"r={settings.r}" if settings.r else f"block_size={spec.block_size}"
            self.resized[adapter_name] = f"{wanted} -> {layout.block_count} x {layout.block_size}"
        copies = shape[0] if len(shape) == 3 else 1
        spec = replace(spec, block_size=layout.block_size, dtype=self._adapter_dtype())
        rotation = Rotation(layout, map_of(spec), copies, spec.dropout, spec.dtype)
        rotation.spec = spec
        return rotation

    @staticmethod
    def _output_count(shape: torch.Size) -> int:
        return shape[:-1].numel()

    def _adapter_dtype(self) -> torch.dtype:
        dtypes = {weight.dtype for weight in self.base_parameters().values()}
        return torch.float64 if torch.float64 in dtypes else torch.float32

    def reset_oft_parameters(self, adapter_name: str, init_weights: bool) -> None:
        """Identity (``True``), or random rotations of standard deviation 0.1 in the stored numbers (``False``)."""
        for rotation in self.rotations(adapter_name).values():
            if init_weights:
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

    def frozen_map(self, adapter_name: str) -> FrozenMap | None:
        """The map of the weight that an adapter is here, or None where it is a rotation."""
        return None

    def frozen_weight(self, adapter_name: str, weight: Tensor) -> Tensor:
        """The float weight that a frozen map makes of ``weight``, in the shape of the base parameter."""
        raise NotImplementedError

    def stored(self, adapter_name: str) -> list[nn.Parameter]:
        """The parameters of an adapter in this layer."""
        magnitude = [self.oft_magnitude[adapter_name]] if adapter_name in self.oft_magnitude else []
        return [rotation.weight for rotation in self.rotations(adapter_name).values()] + magnitude

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # Unlike PEFT's, this never lowers the dtype: rotations are float32 whatever the base is.
        target = device or self.device()
        for tensor in self.stored(adapter_name):
            # On the meta device, where a base is whose weights come one at a time, the numbers would be lost.
            if "meta" not in (tensor.device.type, target.type) and tensor.device != target:
                tensor.data = tensor.data.to(target)

    # Turning.

    def adapters_in_use(self) -> list[str]:
        """Adapters that the forward must apply itself: active ones of this layer, none when merged or disabled."""
        if self._disable_adapters:
            if self.merged:
                self.unmerge()
            return []
        if self.merged_adapters:
            return []
        here = getattr(self, self.container)
        return [name for name in self.active_adapters if name in here]

    def turned(self, adapters: list[str], whole: bool = False, rounded: bool = False) -> dict[str, Tensor]:
        """Parameter name -> ``W'`` under ``adapters``, differentiable, in float32 or rounded to the base's dtype.

        ``whole`` drops no block, see :class:`Rotation`. ``rounded`` is for merging: in the base's dtype, computed run
        by run without a float32 copy of the whole, and without a gradient.
        """
        turn = turn_weight if rounded else turn_whole
        matrices = self.matrices()
        with torch.autocast(next(iter(matrices.values())).device.type, enabled=False):
            return self.assemble({part: turn(W, self.steps(part, adapters, whole)) for part, W in matrices.items()})

    def steps(self, part: str, adapters: list[str], whole: bool = False) -> list[Step]:
        """What the adapters do to the matrix of a part, in the order in which it acts."""
        steps = [
            Step("columns", self.rotations(name)[part](whole).mT)
            for name in reversed(adapters)
            if self.oft_settings[name].spec.side == "in"
        ]
        for name in adapters:
            if self.oft_settings[name].spec.side == "out":
                steps.append(Step("rows", self.rotations(name)[part](whole)))
            if (scale := self.magnitude(name, part)) is not None:
                steps.append(Step("scale_rows", scale))
        return steps

    def magnitude(self, adapter_name: str, part: str = "") -> Tensor | None:
        """Scale of each output neuron of a part ``(copies * out,)``, or None when the adapter has none."""
        if adapter_name not in self.oft_magnitude:
            return None
        sizes = {name: self._output_count(shape) for name, shape in self.shapes().items()}
        start = sum(size for name, size in list(sizes.items())[: list(sizes).index(part)])
        return self.scale_at(adapter_name, self.oft_magnitude[adapter_name][start : start + sizes[part]])

    def get_delta_weight(self, adapter: str) -> Tensor:
        """``W' - W`` of one adapter, in the shape of the base weight, float32 (float64 for float64 weights).

        Raises:
            OrthotuneError: the layer has several weights, as attention has.
        """
        with torch.no_grad(), self.unmerged():
            turned, weights = self.turned([adapter], whole=True), self.assemble(self.matrices())
        if len(turned) != 1:
            raise OrthotuneError(f"one delta weight of a layer that has {sorted(turned)}", do="Use turned() instead")
        (weight,), (original,) = turned.values(), weights.values()
        return weight - original.to(weight.dtype)

    def __repr__(self) -> str:
        return "orthotune." + super().__repr__()
