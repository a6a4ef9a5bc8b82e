"""Strengths of what was trained, one for each layer, and the gradient of a loss with respect to them.

One protocol for rotations (``R^t``), LoRA (``t B A``) and weights trained in full (``W + t (W' - W)``): a finished run
is used at other strengths, and the strengths can be trained like any other parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from orthotune.errors import ConfigError
from orthotune.files.names import shortened
from orthotune.layers.base import OFTLayer
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
            self.ways[name] = _directions(name, layer, adapter)

    def set(self, strengths: Mapping[str, float]) -> None:
        for name, t in strengths.items():
            self.layers[name].set_scale(self.adapter, float(t), "geodesic")
            self.now[name] = float(t)

    def gradients(self) -> dict[str, float]:
        found = {name: _along(ways, self.now[name]) for name, ways in self.ways.items()}
        self.model.zero_grad(set_to_none=True)
        return found


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
        if rotation.spec.transform != "blocks":
            raise ConfigError(
                f"the strength of layer '{name}'", got=f"the transform '{rotation.spec.transform}'",
                needed="block rotations, whose powers have a known derivative",
            )  # fmt: skip
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
