"""Layers whose adapter is no trainable rotation: a frozen, exact map of the whole weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from orthotune.errors import UnsupportedLayerError
from orthotune.kernels.turn_weight import turn_whole
from orthotune.layers.base import OFTLayer
from orthotune.layers.conv import Conv
from orthotune.layers.linear import Linear, TransposedLinear
from orthotune.layers.mixed_batch import BASE, MixedBatch, mixed_batch
from orthotune.layers.settings import LayerSettings
from orthotune.rotation.frozen import FrozenMap


class Transformed(OFTLayer):
    """A layer of a plain kind that can hold frozen weight transforms beside rotations.

    The forward runs the base with the transformed weight, which is kept as long as base and adapters stay the same: the
    weight is then held twice, as in a merged layer. There is nothing to train in a transform; a gradient passes through
    it to other adapters and to the base. At a strength other than 1 a transform does what its home tool does, whatever
    kind of strength is asked for.
    """

    other_param_names = (*OFTLayer.other_param_names, "oft_transforms")
    oft_transforms: dict[str, FrozenMap]
    _kept: tuple[Any, Tensor] | None

    def update_layer(self, adapter_name: str, settings: LayerSettings, inference_mode: bool = False) -> None:
        self.__dict__.setdefault("oft_transforms", {})
        self._kept = None
        if settings.frozen is None:
            super().update_layer(adapter_name, settings, inference_mode)
            return
        self.drop(adapter_name)
        self.oft_strength.pop(adapter_name, None)
        self.oft_transforms[adapter_name] = settings.frozen
        self.oft_settings[adapter_name] = settings
        self.set_adapter(self.active_adapters, inference_mode=inference_mode)

    def frozen_map(self, adapter_name: str) -> FrozenMap | None:
        return self.oft_transforms.get(adapter_name)

    def drop(self, adapter_name: str) -> None:
        """Forget what the layer holds of an adapter; another adapter may stay active."""
        for holder in (self.oft_R, self.oft_embedding_R, self.oft_magnitude):
            if adapter_name in holder:
                del holder[adapter_name]
        for values in (self.r, self.oft_block_size, self.resized, self.oft_transforms):
            values.pop(adapter_name, None)

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter and the weight that was kept for it."""
        super().delete_adapter(adapter_name)
        self._kept = None

    def adapters_in_use(self) -> list[str]:
        held = super().adapters_in_use()
        if self._disable_adapters or self.merged_adapters:
            return held
        return [name for name in self.active_adapters if name in held or name in self.oft_transforms]

    def turned(self, adapters: list[str], whole: bool = False, rounded: bool = False) -> dict[str, Tensor]:
        if not any(name in self.oft_transforms for name in adapters):
            return super().turned(adapters, whole, rounded)
        ((name, base),) = self.base_parameters().items()
        W = self._natural(base)
        with torch.autocast(W.device.type, enabled=False):
            for adapter in self._sequence(adapters):
                transform = self.oft_transforms.get(adapter)
                if transform is not None:
                    W = placed(transform, W.device).apply(W, self.strength(adapter).t)
                else:
                    W = turn_whole(W.flatten(1), self.steps("", [adapter], whole)).view(W.shape)
        W = self._natural(W)
        return {name: W.to(base.dtype) if rounded else W}

    def frozen_weight(self, adapter_name: str, weight: Tensor) -> Tensor:
        """The float weight that one frozen adapter makes of ``weight``, in the shape of the base parameter."""
        W = self._natural(weight)
        transform = placed(self.oft_transforms[adapter_name], W.device)
        return self._natural(transform.apply(W, self.strength(adapter_name).t))

    def _sequence(self, adapters: list[str]) -> list[str]:
        """The order in which adapters act on the weight: those of the inputs from the last to the first, see ``base``.

        Raises:
            UnsupportedLayerError: one scales the rows of a weight that another one before it mixes.
        """
        sides = {name: self._side(name) for name in adapters}
        mixed = False
        for name in adapters:
            scales = name in self.oft_magnitude or getattr(self.oft_transforms.get(name), "magnitude", None) is not None
            if mixed and scales and sides[name] == "in":
                raise UnsupportedLayerError(
                    f"adapters {adapters} together on layer '{self.oft_settings[name].layer}'",
                    got=f"'{name}', which turns inputs and scales outputs, after one that turns outputs",
                    do="Merge the first one, or activate them in the other order",
                )
            mixed |= sides[name] == "out"
        inward = [name for name in reversed(adapters) if sides[name] == "in"]
        return inward + [name for name in adapters if sides[name] == "out"]

    def _side(self, adapter: str) -> str:
        return str(getattr(self.oft_transforms.get(adapter), "side", self.oft_settings[adapter].spec.side))

    @staticmethod
    def _natural(weight: Tensor) -> Tensor:
        """``(out, in, ...)`` from what the base stores, and back."""
        return weight

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if (batch := mixed_batch(self, kwargs, x)) is not None:
            if not any(name in self.oft_transforms for name in batch.rows):
                return super().forward(x, *args, adapter_names=batch, **kwargs)
            here = [name for name in batch.rows if name in self.oft_transforms or self.rotations(name)]
            return batch.by_adapter(x, here, lambda names, rows: self._alone(names, rows, args, kwargs))
        adapters = self.adapters_in_use()
        if not any(name in self.oft_transforms for name in adapters):
            return super().forward(x, *args, **kwargs)
        ((name, base),) = self.base_parameters().items()
        return functional_call(self.base_layer, {name: self._weight(adapters, base)}, (x, *args), kwargs)

    def _alone(self, names: list[str], x: Tensor, args: Any, kwargs: Any) -> Any:
        """Rows of a mixed batch that run under one adapter, or none; its weight is not kept."""
        if not any(name in self.oft_transforms for name in names):
            return super().forward(x, *args, adapter_names=MixedBatch([*(names or [BASE])] * len(x)), **kwargs)
        ((name, base),) = self.base_parameters().items()
        turned = next(iter(self.turned(names).values())).to(base.dtype)
        return functional_call(self.base_layer, {name: turned}, (x, *args), kwargs)

    def _weight(self, adapters: list[str], base: Tensor) -> Tensor:
        numbers = [*(p for name in adapters for p in self.stored(name)), base]
        trained = torch.is_grad_enabled() and any(p.requires_grad for p in numbers)
        if trained or base.is_inference() or torch.compiler.is_compiling():
            return next(iter(self.turned(adapters).values())).to(base.dtype)
        strengths = [(name, self.strength(name)) for name in adapters]
        now = (strengths, [(p._version, p.data_ptr(), p.dtype) for p in numbers])
        if self._kept is None or self._kept[0] != now:
            with torch.inference_mode(False), torch.no_grad():
                self._kept = (now, next(iter(self.turned(adapters).values())).to(base.dtype))
        return self._kept[1]

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        self._kept = None
        super().merge(safe_merge, adapter_names)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self._kept = None
        return super()._apply(*args, **kwargs)


class TransformedLinear(Transformed, Linear):
    """``nn.Linear`` with frozen weight transforms."""


class TransformedConv1D(Transformed, TransposedLinear):
    """transformers' ``Conv1D`` with frozen weight transforms."""

    @staticmethod
    def _natural(weight: Tensor) -> Tensor:
        return weight.mT


class TransformedConv(Transformed, Conv):
    """A convolution with frozen weight transforms."""


def placed(transform: Any, device: torch.device) -> Any:
    """The transform with its tensors on a device; itself where they are there already.

    Example:
        >>> from orthotune.rotation.spec import RotationSpec
        >>> settings = LayerSettings("q", RotationSpec())
        >>> placed(settings, torch.device("cpu")) is settings
        True
    """
    if isinstance(transform, Tensor):
        return transform if transform.device == device else transform.to(device)
    if isinstance(transform, tuple):
        parts = tuple(placed(part, device) for part in transform)
        return transform if all(a is b for a, b in zip(parts, transform, strict=True)) else parts
    if isinstance(transform, Mapping):
        moved = {key: placed(part, device) for key, part in transform.items()}
        return transform if all(moved[key] is part for key, part in transform.items()) else moved
    if is_dataclass(transform) and not isinstance(transform, type):
        old = {field.name: getattr(transform, field.name) for field in fields(transform)}
        new = {name: placed(value, device) for name, value in old.items()}
        changed = {name: value for name, value in new.items() if value is not old[name]}
        return replace(transform, **changed) if changed else transform
    return transform


_KINDS: dict[type[OFTLayer], type[Transformed]] = {
    Linear: TransformedLinear,
    TransposedLinear: TransformedConv1D,
    Conv: TransformedConv,
}


def kind_with(kind: type[OFTLayer], settings: LayerSettings) -> type[OFTLayer]:
    """The layer kind that can hold an adapter of these settings: ``kind`` itself for a rotation.

    Raises:
        UnsupportedLayerError: a weight transform for a kind that cannot hold one.

    Example:
        >>> from orthotune.rotation.spec import RotationSpec
        >>> kind_with(Linear, LayerSettings("q", RotationSpec())).__name__
        'Linear'
    """
    if settings.frozen is None or issubclass(kind, Transformed):
        return kind
    if kind not in _KINDS:
        raise UnsupportedLayerError(
            f"layer '{settings.layer}' ({kind.__name__})",
            got="an adapter that can only be applied to a plain weight",
            needed="a linear layer or a convolution that is not quantized",
            do="Merge the adapter into the files of the base with `orthotune export --to dense`",
        )
    return _KINDS[kind]


def admit(layer: nn.Module, settings: LayerSettings) -> None:
    """Let a layer that is already there hold an adapter of these settings, too.

    Raises:
        UnsupportedLayerError: as for :func:`kind_with`.
    """
    if isinstance(layer, OFTLayer):
        # As torch's parametrizations do: the state stays, only what the layer can do grows.
        layer.__class__ = kind_with(type(layer), settings)
