"""Strengths of an adapter of a model, whatever its method, rotations or LoRA: one for all, or one for each layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from orthotune.errors import ConfigError
from orthotune.files.names import shortened
from orthotune.layers.base import OFTLayer
from orthotune.operations.rewind import check_strengths
from orthotune.tuner.places import adapted_layers, plain_name
from orthotune.tuner.strength import set_scale


def set_strength(model: Any, strength: float | Mapping[str, float], adapter: str = "default") -> None:
    """Use an adapter at a strength: every angle of a rotation, or the change by a LoRA, times ``strength``.

    Args:
        model: a ``PeftModel`` with an OFT or LoRA adapter.
        strength: 0 is the base, 1 the adapter as trained, -1 its inverse; values above 1 extrapolate. Or a strength for
            each of some layers, by their names in the base (:func:`layer_names`); the others get 1.
        adapter: its name.

    Raises:
        ConfigError: not a finite number, no such layer, no adapter, or an adapter with parts that have no strength, as
            DoRA's magnitudes or modules that were trained in full. No layer is changed.

    Example:
        >>> from torch import nn
        >>> from orthotune import OFTConfig, get_peft_model
        >>> model = get_peft_model(nn.Sequential(nn.Linear(8, 4)), OFTConfig(r=2, target_modules=["0"]))
        >>> set_strength(model, 0.5)
    """
    if isinstance(strength, Mapping):
        _set_each(model, strength, adapter)
        return
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not math.isfinite(strength):
        raise ConfigError(f"strength {strength!r}", needed="a finite number; 0 is the base, 1 the adapter as trained")
    if not isinstance(model, PeftModel):
        raise ConfigError(f"strength {strength:g}", got="a model without an adapter", needed="a run or an adapter")
    scale_layers(model, strength, adapter)


def layer_names(model: nn.Module, adapter: str = "default") -> list[str]:
    """The layers of an adapter, by their names in the base.

    Args:
        model: a model with an OFT or LoRA adapter.
        adapter: its name.

    Example:
        >>> from orthotune import OFTConfig, get_peft_model
        >>> layer_names(get_peft_model(nn.Sequential(nn.Linear(8, 4)), OFTConfig(r=2, target_modules=["0"])))
        ['0']
    """
    return list(_layers(model, adapter))


def _layers(model: nn.Module, adapter: str) -> dict[str, Any]:
    found: dict[str, Any] = dict(adapted_layers(model, adapter)) or {
        name: one for name, one in model.named_modules() if isinstance(one, LoraLayer) and adapter in one.scaling
    }
    return {plain_name(name).removeprefix("base_model.model."): layer for name, layer in found.items()}


def _set_each(model: Any, strengths: Mapping[str, float], adapter: str) -> None:
    layers = _layers(model, adapter)
    check_strengths(list(layers), strengths)
    for name, t in strengths.items():
        if isinstance(layers[name], OFTLayer):
            layers[name].check_strength(adapter, t)
    if any(t != 1 for t in strengths.values()):
        scale_layers(model, 0.5, adapter)  # refuses adapters with parts that have no strength
    scale_layers(model, 1.0, adapter)
    for name, t in strengths.items():
        layers[name].set_scale(adapter, float(t))


def scale_layers(model: nn.Module, strength: float, adapter: str = "default") -> None:
    """:func:`set_strength` for any module with an adapter, such as a network of a diffusers pipeline.

    Args:
        model: has ``peft_config``.
        strength: 0 is the base, 1 the adapter as trained.
        adapter: its name.

    Raises:
        ConfigError: as of :func:`set_strength`.
    """
    if not math.isfinite(strength):
        raise ConfigError(f"strength {strength!r}", needed="a finite number; 0 is the base, 1 the adapter as trained")
    if strength != 1:
        _check_parts(model, adapter)
    if any(isinstance(module, OFTLayer) for module in model.modules()):
        set_scale(model, adapter, float(strength))
        return
    layers = [one for one in model.modules() if isinstance(one, LoraLayer) and adapter in one.scaling]
    if not layers and strength != 1:
        raise ConfigError(f"strength {strength:g}", got="an adapter that is neither OFT nor LoRA")
    if strength != 1 and any(layer.use_dora.get(adapter) for layer in layers):
        raise ConfigError(f"strength {strength:g}", got="DoRA, whose magnitudes have no strength", needed="LoRA")
    for layer in layers:
        layer.set_scale(adapter, float(strength))


def _check_parts(model: Any, adapter: str) -> None:
    config: Any = model.peft_config.get(adapter)
    for key in ("modules_to_save", "trainable_token_indices"):
        if getattr(config, key, None):
            raise ConfigError(
                f"a strength of adapter '{adapter}'", got=f"parts that have none, {key}: "
                f"{shortened([str(one) for one in getattr(config, key)])}",
                do="Use strength 1, or switch the adapter off",
            )  # fmt: skip
    if getattr(config, "bias", "none") != "none":
        raise ConfigError(f"a strength of adapter '{adapter}'", got="biases that were trained beside it, without one")
