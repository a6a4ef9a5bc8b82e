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
from orthotune.layers.embedding import Embedding
from orthotune.layers.linear import Linear
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
    check_named(model, batch)
    beams = num_beams if isinstance(num_beams, int) and num_beams > 1 else 1
    # The encoder sees each row once, without repetition for beams.
    alone = _encoder_of(model) if beams > 1 else set()
    repeated = batch if beams == 1 else MixedBatch([name for name in batch.names for _ in range(beams)])
    handles = []
    try:
        for module in _adapted(model):
            given = _given(batch if module in alone else repeated, module)
            handles.append(module.register_forward_pre_hook(partial(_hand, given), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def handed_down_by_token(model: Any, tokens: MixedBatch, heads: MixedBatch) -> Iterator[None]:
    """Context manager: run every layer of a model of transformers by token, where a call has one row of tokens.

    Args:
        model: the model; what it may be is checked by :func:`check_named`.
        tokens: the adapter of each token.
        heads: those of the tokens that the head gets.

    Raises:
        ConfigError: a layer gets something else than all tokens.
    """
    head, handles = model.get_output_embeddings(), []
    try:
        for module in _adapted(model):
            own = heads if module is head else tokens
            hand = partial(_hand_rows, _given(own, module), len(own.names))
            handles.append(module.register_forward_pre_hook(hand, with_kwargs=True))
            handles.append(module.register_forward_hook(_as_one_row))
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_named(model: nn.Module, batch: MixedBatch, by_token: bool = False) -> None:
    """Refuse a batch that a model cannot run.

    Args:
        model: the tuner, or the model that it adapts.
        batch: the adapters of its rows.
        by_token: whether its rows are tokens.

    Raises:
        ConfigError: the model is in training, or does not have an adapter.
        UnsupportedLayerError: a layer whose weight is read by another module, or one that mixes tokens.
    """
    if model.training:
        raise ConfigError("Cannot pass `adapter_names` when the model is in training mode", do="Call eval() first")
    layers = [module for module in _adapted(model) if isinstance(module, OFTLayer)]
    _check_names(batch, layers)
    _check_outputs(batch, layers)
    for layer in layers if by_token else ():
        if not isinstance(layer, Linear | Embedding):
            raise UnsupportedLayerError(
                f"adapter_names for the tokens of layer '{next(iter(layer.oft_settings.values())).layer}'",
                got=f"{type(layer).__name__}, whose rows are not tokens", needed="linear layers and embeddings",
                do="Call generate(..., adapter_names=[...]), or run each adapter separately with set_adapter",
            )  # fmt: skip


def _adapted(model: nn.Module) -> list[nn.Module]:
    """The layers of adapters, and after them what adapters train in full."""
    modules = [module for _, module in beside_adapters(model)]
    layers: list[nn.Module] = [module for module in modules if isinstance(module, OFTLayer)]
    return layers + [module for module in modules if isinstance(module, AuxiliaryTrainingWrapper)]


def _given(batch: MixedBatch, module: Any) -> MixedBatch | list[str]:
    """What a module takes: PEFT's wrapper of a saved module ends with a KeyError at an adapter that did not save it."""
    return batch if isinstance(module, OFTLayer) else [n if n in module._adapters else BASE for n in batch.names]


def _encoder_of(model: nn.Module) -> set[nn.Module]:
    base: Any = getattr(model, "model", model)
    if not getattr(getattr(base, "config", None), "is_encoder_decoder", False) or not hasattr(base, "get_encoder"):
        return set()
    return set(base.get_encoder().modules())


def _hand(names: object, _: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return args, {**kwargs, "adapter_names": names}


def _hand_rows(
    names: object, count: int, module: nn.Module, args: Any, kwargs: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The input ``(1, tokens, ...)`` as ``(tokens, ...)``, with its adapters."""
    if not args or tuple(args[0].shape[:2]) != (1, count):
        raise ConfigError(
            f"adapter_names for the tokens of a {type(module).__name__}",
            got=f"an input of shape {tuple(args[0].shape) if args else 'unknown'}",
            needed=f"(1, {count}, ...), the tokens of all requests",
            do="Call generate(..., adapter_names=[...]), or leave the layer out of the adapters",
        )
    return (args[0].squeeze(0), *args[1:]), {**kwargs, "adapter_names": names}


def _as_one_row(_: nn.Module, __: Any, output: Any) -> Any:
    return output.unsqueeze(0)


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
