"""The base inside an adapted model, asked while the adapter stays where it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn


@contextmanager
def adapter_off(model: nn.Module) -> Iterator[None]:
    """``model`` computes what its base does, for as long as the context lasts.

    Cheap enough for every step: ``PeftModel.disable_adapter`` also asks every layer for its state, and on its way back
    makes every parameter of the adapter trainable, those too that were frozen on purpose. Here nothing but the switch
    of each layer changes: modes, gradients and what was computed from parameters stay.

    Example:
        >>> from orthotune import OFTConfig, get_peft_model
        >>> model = get_peft_model(nn.Sequential(nn.Linear(4, 4)), OFTConfig(r=2, target_modules=["0"]))
        >>> with adapter_off(model):
        ...     model.base_model.model[0].disable_adapters
        True
    """
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    switched = [layer for layer in layers if not layer.disable_adapters]
    for layer in switched:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in switched:
            layer._disable_adapters = False
