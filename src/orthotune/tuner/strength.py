"""The strength of an adapter in a whole model."""

from __future__ import annotations

from torch import nn

from orthotune.errors import ConfigError, nearest
from orthotune.layers.base import OFTLayer
from orthotune.rotation.strength import Kind


def set_scale(model: nn.Module, adapter: str, scale: float, kind: Kind | None = None) -> None:
    """Set how strongly an adapter acts in every layer that has it.

    The rotation becomes ``R^t``: each of its planes turns by ``t`` times its angle, so that it stays orthogonal for
    every ``t``; a magnitude becomes ``m^t``. Files know no strength: they hold the adapter at 1.

    Args:
        model: any module that holds adapted layers: a ``PeftModel``, a diffusers model, a part of one.
        adapter: its name.
        scale: ``t``; 0 is the base, 1 the adapter, below 0 turns back, above 1 goes on.
        kind: ``geodesic``; ``linear`` for ``W + t (W' - W)``; ``rotation`` to blend the rotation linearly with the
            identity and leave the magnitude whole. As before if None, at first ``geodesic``.

    Raises:
        ConfigError: no layer has the adapter, the strength is no finite number, or a magnitude has no such power. No
        layer is changed then.

    Example:
        >>> from orthotune import OFTConfig, get_peft_model
        >>> model = get_peft_model(nn.Sequential(nn.Linear(8, 4)), OFTConfig(r=2, target_modules=["0"]))
        >>> set_scale(model, "default", 0.5)
    """
    layers = [module for module in model.modules() if isinstance(module, OFTLayer)]
    holders = [layer for layer in layers if adapter in layer.oft_settings]
    if not holders:
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
