"""The modules that can carry an adapter: of one model, or of each component of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from orthotune.errors import TargetError, UnsupportedLayerError
from orthotune.layers.base import OFTLayer
from orthotune.layers.registry import kind_of

#: Beginnings of the names of pipeline components that can carry an adapter.
ADAPTED = ("unet", "transformer", "text_encoder", "controlnet", "prior")


def components_of(model: Any) -> dict[str, nn.Module]:
    """Component -> module: ``{"": model}`` for one model, the adaptable components of a pipeline or a mapping.

    Raises:
        TargetError: ``model`` is neither a module, nor a pipeline, nor a mapping of modules.

    Example:
        >>> list(components_of({"unet": nn.Identity()}))
        ['unet']
    """
    if isinstance(model, nn.Module):
        return {"": model}
    known = model if isinstance(model, Mapping) else getattr(model, "components", None)
    found = {name: part for name, part in (known or {}).items() if isinstance(part, nn.Module)}
    if not isinstance(model, Mapping):
        found = {name: part for name, part in found.items() if name.startswith(ADAPTED)}
    if not found:
        raise TargetError(
            "the model", got=type(model).__name__,
            needed="a module, a diffusers pipeline, or a mapping such as {'text_encoder_2': module}",
        )  # fmt: skip
    return found


def bare(model: nn.Module) -> nn.Module:
    """The model inside PEFT's wrappers; the names of the adapter's layers are relative to it."""
    if isinstance(model, PeftModel):
        model = model.base_model
    return model.model if isinstance(model, BaseTuner) else model


def adaptable(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> base module of every module that a layer kind supports, whether it is adapted already or not.

    Example:
        >>> list(adaptable(nn.Sequential(nn.Linear(2, 2), nn.ReLU())))
        ['0']
    """
    found: dict[str, nn.Module] = {}
    inside: tuple[str, ...] = ()
    for name, module in bare(model).named_modules():
        if not name or name.startswith(inside or ("\0",)):
            continue
        if isinstance(module, OFTLayer):
            found[name] = module.get_base_layer()
            inside += (f"{name}.",)
            continue
        try:
            kind_of(module, name)
        except UnsupportedLayerError:
            continue
        found[name] = module
    return found
