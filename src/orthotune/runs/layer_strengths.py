"""Strengths of what was trained, one for each layer, and the gradient of a loss with respect to them.

One protocol for rotations (``R^t``), LoRA (``t B A``) and weights trained in full (``W + t (W' - W)``): a finished run
is used at other strengths, and the strengths can be trained like any other parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from orthotune.errors import ConfigError, OrthotuneError
from orthotune.files.names import shortened
from orthotune.layers.base import OFTLayer
from orthotune.layers.parametrization.family import FamilyRotation
from orthotune.rotation.geodesic import power_direction
from orthotune.rotation.packing import pack
from orthotune.tuner.places import plain_name

#: A gradient with respect to a strength is read off the parameters', of which nothing is left at strength 0.
SMALLEST = 0.02


class LayerStrengths(Protocol):
    """The strength of every trained layer of a model."""

    names: tuple[str, ...]

    def set(self, strengths: Mapping[str, float]) -> None:
        """Use the layers at these strengths: 0 is the base, 1 as trained. Layers that are not named stay as they are.

        Args:
            strengths: layer -> strength.
        """

    def gradients(self) -> dict[str, float]:
        """The gradients of the last backward with respect to the strengths; the parameters' are cleared.

        Returns:
            layer -> derivative of the loss with respect to its strength.
        """


def layer_strengths(model: nn.Module, adapter: str = "default", base: nn.Module | None = None) -> LayerStrengths:
    """The strengths of an adapter's layers, or of all weights that differ from those of a base.

    Args:
        model: a model with an OFT or LoRA adapter, or one that was trained in full.
        adapter: the adapter.
        base: the model before it was trained in full; None for an adapter.

    Raises:
        ConfigError: the model holds parts of the adapter that have no strength: DoRA's magnitudes, modules that are
            trained in full, biases, Neumann series.

    Example:
        >>> from orthotune import OFTConfig, get_peft_model
        >>> model = get_peft_model(nn.Sequential(nn.Linear(8, 4)), OFTConfig(r=2, target_modules=["0"]))
        >>> layer_strengths(model).names
        ('0',)
    """
    if base is not None:
        return _Line(base, model)
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, (OFTLayer, LoraLayer))}
    layers = {_name(name): layer for name, layer in found.items()}
    rotations = {name: layer for name, layer in layers.items() if isinstance(layer, OFTLayer)}
    _refuse_others(model, adapter)
    if rotations:
        return _Rotations(model, rotations, adapter)
    if not layers:
        raise ConfigError("strengths of layers", got="a model without an adapter", needed="an OFT or LoRA adapter")
    return _Lora(model, layers, adapter)


class _Rotations:
    """Rotations, and magnitudes beside them."""

    def __init__(self, model: nn.Module, layers: dict[str, OFTLayer], adapter: str) -> None:
        self.model = model
        self.layers = {name: layer for name, layer in layers.items() if adapter in layer.slots}
        self.adapter, self.names = adapter, tuple(self.layers)
        self.now = dict.fromkeys(self.names, 1.0)
        self.ways: dict[str, list[tuple[nn.Parameter, Tensor]]] = {}
        for name, layer in self.layers.items():
            if layer.frozen_map(adapter) is not None:
                raise ConfigError(f"layer '{name}'", got="a frozen map of another tool's file", needed="a rotation")
            if not _of_family(layer, adapter):
                self.ways[name] = _directions(name, layer, adapter)
        self.written = {
            name: _Written(name, layer, adapter) for name, layer in self.layers.items() if name not in self.ways
        }

    def set(self, strengths: Mapping[str, float]) -> None:
        for name, t in strengths.items():
            if name in self.written:
                self.written[name].set(float(t))
            else:
                self.layers[name].set_scale(self.adapter, float(t), "geodesic")
            self.now[name] = float(t)

    def gradients(self) -> dict[str, float]:
        found = {name: _along(ways, self.now[name]) for name, ways in self.ways.items()}
        found |= {name: written.gradient(self.now[name]) for name, written in self.written.items()}
        self.model.zero_grad(set_to_none=True)
        return found


class _Written:
    """A layer of another transform than blocks, whose stored parameters are replaced by those at a strength.

    Powers of these have no gradient of their own; stored parameters that follow from the strength have, so that what is
    measured here is, bit for bit, what a file of the adapter at this strength holds.
    """

    #: half of the difference of strengths by which the direction of the parameters is computed, in float64
    STEP = 1e-4

    def __init__(self, name: str, layer: OFTLayer, adapter: str) -> None:
        self.rotations = [cast(FamilyRotation, one) for one in layer.rotations(adapter).values()]
        self.magnitude = layer.oft_magnitude[adapter].weight if adapter in layer.oft_magnitude else None
        self.start = [one.weight.detach().clone() for one in self.rotations]
        self.scale = None if self.magnitude is None else self.magnitude.detach().clone()
        if self.scale is not None and bool((self.scale <= 0).any()):
            raise ConfigError(f"the strength of layer '{name}'", got="a magnitude of 0 or below")
        try:
            self.set(0.5)
        except OrthotuneError as error:
            raise ConfigError(
                f"the strength of layer '{name}'", got=error.got, needed=error.needed, do=error.do
            ) from error
        self.set(1.0)

    def _at(self, t: float) -> list[Tensor]:
        pairs = zip(self.rotations, self.start, strict=True)
        return [one.kind.numbers_at(one.spec, start.double(), t, one.basis) for one, start in pairs]

    @torch.no_grad()
    def set(self, t: float) -> None:
        """Write the parameters at this strength; at 1 they give the map as trained, to rounding."""
        for one, numbers in zip(self.rotations, self._at(t), strict=True):
            one.weight.copy_(numbers)
        if self.magnitude is not None and self.scale is not None:
            self.magnitude.copy_(self.scale.double().pow(t))

    def gradient(self, t: float) -> float:
        """The derivative of the loss of the last backward with respect to the strength."""
        total, ahead, behind = 0.0, self._at(t + self.STEP), self._at(t - self.STEP)
        for one, more, less in zip(self.rotations, ahead, behind, strict=True):
            if one.weight.grad is not None:
                total += float((one.weight.grad * (more - less)).sum(dtype=torch.float64)) / (2 * self.STEP)
        if self.magnitude is not None and self.magnitude.grad is not None and self.scale is not None:
            slope = self.scale.double().pow(t) * self.scale.double().log()
            total += float((self.magnitude.grad * slope).sum(dtype=torch.float64))
        return total


def _of_family(layer: OFTLayer, adapter: str) -> bool:
    return all(isinstance(one, FamilyRotation) for one in layer.rotations(adapter).values())


class _Lora:
    def __init__(self, model: nn.Module, layers: dict[str, Any], adapter: str) -> None:
        self.model = model
        self.layers = {name: layer for name, layer in layers.items() if adapter in layer.scaling}
        self.adapter, self.names = adapter, tuple(self.layers)
        if dora := [name for name, layer in self.layers.items() if layer.use_dora.get(adapter)]:
            raise ConfigError(
                f"the strength of layer '{dora[0]}'", got="DoRA, whose magnitudes have no strength", needed="LoRA"
            )
        self.now = dict.fromkeys(self.names, 1.0)
        self.ways = {}
        for name, layer in self.layers.items():
            factors = layer.lora_embedding_B if adapter in layer.lora_embedding_B else layer.lora_B
            parameter = factors[adapter] if isinstance(factors, nn.ParameterDict) else factors[adapter].weight
            self.ways[name] = [(parameter, parameter.detach().clone())]

    def set(self, strengths: Mapping[str, float]) -> None:
        for name, t in strengths.items():
            self.layers[name].set_scale(self.adapter, float(t))
            self.now[name] = float(t)

    def gradients(self) -> dict[str, float]:
        found = {name: _along(ways, self.now[name]) for name, ways in self.ways.items()}
        self.model.zero_grad(set_to_none=True)
        return found


class _Line:
    """Weights trained in full: the straight line from the base's."""

    def __init__(self, base: nn.Module, trained: nn.Module) -> None:
        self.model, before = trained, dict(base.named_parameters())
        self.ends: dict[str, list[tuple[nn.Parameter, Tensor, Tensor]]] = {}
        for name, parameter in trained.named_parameters():
            start = before[name].detach().to(parameter)
            if not torch.equal(start, parameter):
                layer = name.rpartition(".")[0]
                self.ends.setdefault(layer, []).append((parameter, start, parameter.detach().clone()))
        self.names = tuple(self.ends)

    @torch.no_grad()
    def set(self, strengths: Mapping[str, float]) -> None:
        for name, t in strengths.items():
            for parameter, start, end in self.ends[name]:
                parameter.copy_(end if t == 1 else torch.lerp(start, end, float(t)))

    def gradients(self) -> dict[str, float]:
        ways = {name: [(p, end - start) for p, start, end in ends] for name, ends in self.ends.items()}
        found = {name: _along(own, 1.0) for name, own in ways.items()}
        self.model.zero_grad(set_to_none=True)
        return found


def _directions(name: str, layer: OFTLayer, adapter: str) -> list[tuple[nn.Parameter, Tensor]]:
    """Each parameter of a layer, and the direction in which it moves when the layer's strength grows in proportion."""
    ways = []
    for rotation in layer.rotations(adapter).values():
        if not rotation.spec.exact:
            raise ConfigError(
                f"the strength of layer '{name}'", got="a Neumann series, which is no rotation",
                do="Make the adapter exact first: orthotune combine ADAPTER:1 --out EXACT",
            )  # fmt: skip
        weight, spec = rotation.weight, rotation.spec
        rotation.project()  # a block outside of COFT's radius has no gradient along itself
        direction = pack(power_direction(replace(spec, eps=None).skew(weight.detach()))) / spec.scale
        ways.append((weight, direction.to(weight.dtype)))
    if adapter in layer.oft_magnitude:
        magnitude = layer.oft_magnitude[adapter].weight
        layer.check_strength(adapter, 0.5, "geodesic")  # a magnitude of 0 or below has no logarithm
        ways.append((magnitude, magnitude.detach() * magnitude.detach().log()))
    return ways


def _along(ways: list[tuple[nn.Parameter, Tensor]], t: float) -> float:
    total = 0.0
    for parameter, direction in ways:
        if parameter.grad is not None:
            total += float((parameter.grad * direction).sum(dtype=torch.float64))
    return total / max(abs(t), SMALLEST)


def _refuse_others(model: nn.Module, adapter: str) -> None:
    config = getattr(model, "peft_config", {}).get(adapter)
    for key, what in (("modules_to_save", "modules that were trained in full"), ("trainable_token_indices", "tokens")):
        if getattr(config, key, None):
            raise ConfigError(f"strengths of adapter '{adapter}'", got=f"{what}: {shortened(getattr(config, key))}")
    if getattr(config, "bias", "none") != "none":
        raise ConfigError(f"strengths of adapter '{adapter}'", got="biases that were trained beside it")


def _name(key: str) -> str:
    """The layer's name in the model without PEFT's wrappers, as adapter files have it."""
    return plain_name(key).removeprefix("base_model.model.")
