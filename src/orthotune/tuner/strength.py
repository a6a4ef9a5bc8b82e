"""Scale a trained adapter in a model: by its strength, or by a trainable magnitude for every output."""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from torch import nn

from orthotune.errors import ConfigError, nearest
from orthotune.files.names import shortened
from orthotune.layers.base import OFTLayer
from orthotune.rotation.strength import Kind
from orthotune.tuner.places import adapted_layers


def set_scale(model: nn.Module, adapter: str, scale: float, kind: Kind | None = None) -> None:
    """Set the strength of an adapter in every layer that has it.

    The rotation becomes ``R^t``: each of its planes rotates by ``t`` times its angle, so that it stays orthogonal for
    every ``t``; a magnitude becomes ``m^t``. Files do not record a strength: they hold the adapter at 1.

    Args:
        model: any module that holds adapted layers: a ``PeftModel``, a diffusers model, a part of one.
        adapter: its name.
        scale: ``t``; 0 is the base, 1 the adapter as trained, -1 its inverse; values above 1 extrapolate.
        kind: ``geodesic``; ``linear`` for ``W + t (W' - W)``; ``rotation`` to blend the rotation linearly with the
            identity and keep the magnitude. None keeps the present kind, initially ``geodesic``.

    Raises:
        ConfigError: no layer has the adapter, the strength is not finite, or a magnitude has no such power. No layer is
            changed.

    Example:
        >>> from orthotune import OFTConfig, get_peft_model
        >>> model = get_peft_model(nn.Sequential(nn.Linear(8, 4)), OFTConfig(r=2, target_modules=["0"]))
        >>> set_scale(model, "default", 0.5)
    """
    holders = [layer for _, layer in adapted_layers(model, adapter)]
    if not holders:
        layers = [module for module in model.modules() if isinstance(module, OFTLayer)]
        known = sorted({name for layer in layers for name in layer.oft_settings})
        near = nearest(adapter, known)
        raise ConfigError(
            f"the strength of adapter '{adapter}'", got=f"adapters {known}" if known else "no adapted layer",
            do=f"Did you mean {near[0]}?" if near else None,
        )  # fmt: skip
    for layer in holders:
        layer.check_strength(adapter, scale, kind)
    for layer in holders:
        layer.set_scale(adapter, scale, kind)


def free_magnitudes(model: nn.Module, adapter_name: str = "default") -> dict[str, nn.Parameter]:
    """Add a magnitude, initially 1, to every layer of an adapter, and freeze all other parameters.

    The output of the model is unchanged. An existing magnitude keeps its values. The adapter is saved and loaded with
    its magnitudes from now on.

    Args:
        model: with an OFT adapter: a ``PeftModel``, or a module that diffusers or transformers put one into.
        adapter_name: the adapter; magnitudes of others are frozen.

    Returns:
        Layer -> its magnitude, float32 ``(outputs,)``.

    Raises:
        ConfigError: there is no such adapter, or it has layers whose map is no rotation: no file could hold the
            magnitude of those.

    Source: re-scaled OFT, arXiv 2306.07280, section 3.4: fitted after the rotation, on the same loss.

    Example:
        >>> from orthotune import OFTConfig, get_peft_model
        >>> base = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
        >>> model = get_peft_model(base, OFTConfig(r=2, target_modules=["0", "2"]))
        >>> [tuple(scale.shape) for scale in free_magnitudes(model).values()]
        [(6,), (4,)]
    """
    layers = dict(adapted_layers(model, adapter_name))
    if not layers:
        raise ConfigError(
            f"magnitudes for adapter '{adapter_name}'", got="no layer that it rotates", needed="an OFT adapter"
        )
    if fixed := [name for name, layer in layers.items() if not layer.rotations(adapter_name)]:
        raise ConfigError(
            f"magnitudes for adapter '{adapter_name}'",
            got=f"{len(fixed)} layers whose map is no rotation: {shortened(fixed)}",
            needed="rotations only",
            do="Merge the adapter and train a new one with magnitude=True",
        )
    model.requires_grad_(False)
    found = {}
    for name, layer in layers.items():
        layer.add_magnitude(adapter_name)
        found[name] = layer.oft_magnitude[adapter_name].requires_grad_(True).weight
    for config in _configs(model, adapter_name):
        config.magnitude, config.inference_mode = True, False
        config.layer_settings = {
            layer: {key: value for key, value in own.items() if key != "magnitude"}
            for layer, own in config.layer_settings.items()
        }
    return found


def _configs(model: nn.Module, name: str) -> list[Any]:
    """The configs of the adapter, each once: PEFT's wrappers and the models inside may share or repeat them."""
    holders = [model, model.base_model] if isinstance(model, PeftModel) else list(model.modules())
    held = [getattr(holder, "peft_config", None) for holder in holders]
    return list({id(found[name]): found[name] for found in held if isinstance(found, dict) and name in found}.values())
