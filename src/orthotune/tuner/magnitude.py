"""A trained rotation that stands still while the scale of each output neuron is fitted: re-scaled OFT."""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from torch import nn

from orthotune.errors import ConfigError
from orthotune.files.names import shortened
from orthotune.layers.base import OFTLayer


def free_magnitudes(model: nn.Module, adapter_name: str = "default") -> dict[str, nn.Parameter]:
    """Give every layer of a rotated model a magnitude, 1 at first, and make these all that is trained.

    The model computes the same as before. A magnitude that is there already keeps its numbers; the rotations, and
    everything else in ``model``, are frozen. The adapter is saved and loaded with its magnitudes from now on.

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
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, OFTLayer) and adapter_name in module.oft_settings
    }
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
        _add(layer, adapter_name)
        found[name] = layer.oft_magnitude[adapter_name].requires_grad_(True)
    for config in _configs(model, adapter_name):
        config.magnitude, config.inference_mode = True, False
        config.layer_settings = {
            layer: {key: value for key, value in said.items() if key != "magnitude"}
            for layer, said in config.layer_settings.items()
        }
    return found


def _add(layer: OFTLayer, name: str) -> None:
    layer.add_magnitude(name)


def _configs(model: nn.Module, name: str) -> list[Any]:
    """The configs of the adapter, each once: PEFT's wrappers and the models inside may share or repeat them."""
    holders = [model, model.base_model] if isinstance(model, PeftModel) else list(model.modules())
    held = [getattr(holder, "peft_config", None) for holder in holders]
    return list({id(found[name]): found[name] for found in held if isinstance(found, dict) and name in found}.values())
