"""Pass ``adapter_names`` of a model call on to every adapted layer for the duration of the call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from orthotune.errors import ConfigError, UnsupportedLayerError, nearest
from orthotune.layers.attention import AttentionOutput
from orthotune.layers.base import OFTLayer
from orthotune.layers.beside_adapters import beside_adapters
from orthotune.layers.mixed_batch import BASE, MixedBatch


@contextmanager
def handed_down(model: nn.Module, names: Sequence[str], num_beams: object = None) -> Iterator[None]:
    """Context manager: run every layer of ``model`` as a mixed batch, by PEFT's protocol.

    Args:
        model: the tuner, or the model that it adapts.
        names: one adapter for each row of the batch, or ``"__base__"``.
        num_beams: for beam search: each row of the batch is repeated so many times.

    Raises:
        ConfigError: ``names`` is not a list, the model is in training, or does not have an adapter.
        UnsupportedLayerError: a layer whose weight is read by another module.
    """
    batch = MixedBatch(names)
    if model.training:
        raise ConfigError("Cannot pass `adapter_names` when the model is in training mode", do="Call eval() first")
    modules = [module for _, module in beside_adapters(model)]
    layers = [module for module in modules if isinstance(module, OFTLayer)]
    saved = [module for module in modules if isinstance(module, AuxiliaryTrainingWrapper)]
    _check_names(batch, layers)
    _check_outputs(batch, layers)
    beams = num_beams if isinstance(num_beams, int) and num_beams > 1 else 1
    # The encoder sees each row once, without repetition for beams.
    alone = _encoder_of(model) if beams > 1 else set()
    repeated = batch if beams == 1 else MixedBatch([name for name in batch.names for _ in range(beams)])
    handles = []
    try:
        for module in [*layers, *saved]:
            own = batch if module in alone else repeated
            given = own if isinstance(module, OFTLayer) else list(own.names)
            handles.append(module.register_forward_pre_hook(partial(_hand, given), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _encoder_of(model: nn.Module) -> set[nn.Module]:
    base: Any = getattr(model, "model", model)
    if not getattr(getattr(base, "config", None), "is_encoder_decoder", False) or not hasattr(base, "get_encoder"):
        return set()
    return set(base.get_encoder().modules())


def _hand(names: object, _: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, "adapter_names": names}


def _check_names(batch: MixedBatch, layers: list[OFTLayer]) -> None:
    # A layer need not have every adapter, so layers cannot detect a wrong name.
    known = {name for layer in layers for name in layer.oft_settings}
    if unknown := sorted(set(batch.rows) - known):
        close = nearest(unknown[0], known, count=1)
        raise ConfigError(
            f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}",
            needed=f"adapters of this model ({', '.join(sorted(known))}) or {BASE}",
            do=f"Did you mean '{close[0]}'?" if close else None,
        )


def _check_outputs(batch: MixedBatch, layers: list[OFTLayer]) -> None:
    for layer in layers:
        if isinstance(layer, AttentionOutput) and not layer._disable_adapters:
            found = {*batch.rows, *layer.active_adapters} & set(layer.oft_settings)
            if found:
                raise UnsupportedLayerError(
                    f"adapter_names for layer '{next(iter(layer.oft_settings.values())).layer}'",
                    got="the output projection of an nn.MultiheadAttention, which reads one weight for all rows",
                    do="Run each adapter separately with set_adapter, or remove this layer from target_modules",
                )
