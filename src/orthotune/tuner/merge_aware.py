"""Merge-aware training of a quantized base: what is trained and evaluated is what the merged model computes."""

from __future__ import annotations

from torch import nn

from orthotune.errors import ConfigError
from orthotune.layers.quantized_linear import QuantizedLinear


def merge_aware(model: nn.Module, enabled: bool = True) -> int:
    """Let every adapted, quantized layer compute with its adapted weight quantized, as merging stores it.

    The model that is merged afterwards is bit for bit the model that was evaluated. A call quantizes each adapted
    weight anew, which takes longer than the layer's product; batches of several adapters, and layers into which
    something is merged already, run as without this. What is set is not saved: an adapter's file is the same.

    Args:
        model: with adapters on quantized layers.
        enabled: False takes it back.

    Returns:
        The number of layers.

    Raises:
        ConfigError: no adapted layer is quantized, or a library has no way to quantize a new weight.

    Example:
        >>> merge_aware(model)  # doctest: +SKIP
        210
    """
    layers = [layer for layer in model.modules() if isinstance(layer, QuantizedLinear)]
    if not layers:
        raise ConfigError(
            "merge_aware", got="a model without quantized layers that are adapted", needed="a quantized base",
            do="Load the base quantized, or leave merge_aware out: merging into other layers is exact to rounding",
        )  # fmt: skip
    for layer in layers if enabled else ():
        if (reason := layer.library.cannot_merge(layer.get_base_layer())) is not None:
            raise ConfigError(f"merge_aware for {layer.described}", got=reason, do="Leave merge_aware out")
    for layer in layers:
        layer.merge_aware = enabled
    return len(layers)
