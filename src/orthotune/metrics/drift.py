"""Drift of a language model: next-token distributions before and after, on texts that are not about the task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from orthotune.metrics.text_loss import IGNORED, TokenRow, _batches, _pad, _vocabulary


@dataclass(frozen=True)
class TextDrift:
    """Change of the next-token predictions on texts.

    Args:
        kl: mean over all tokens of the Kullback-Leibler divergence KL(base || adapted), in nats per token.
        kl_largest: the divergence at the token where the two models differ most, in nats.
        same_choice: share of the tokens at which both models give the same next token the highest probability.
        tokens: number of tokens that were counted.
    """

    kl: float
    kl_largest: float
    same_choice: float
    tokens: int


@torch.no_grad()
def text_drift(model: Any, rows: Sequence[TokenRow], base: nn.Module | None = None) -> TextDrift:
    """The drift of an adapted model on texts that should have nothing to do with its task.

    Args:
        model: a ``PeftModel``, or, with ``base``, any causal language model.
        rows: tokens; tokens labelled -100 are read but not counted.
        base: the model before training; ``model`` with its adapters disabled if None.

    Raises:
        ValueError: no token to count.

    Example:
        >>> text_drift(model, token_rows(tokenizer, ["The sky is"], 64)).kl  # doctest: +SKIP
        0.013
    """
    device = next(model.parameters()).device
    total, largest, same, tokens = 0.0, 0.0, 0, 0
    with _evaluating(model), _evaluating(model if base is None else base):
        for places in _batches(rows, _vocabulary(model)):
            ids, labels, mask = (side.to(device) for side in _pad([rows[place] for place in places]))
            counted = labels[:, 1:] != IGNORED
            after = _log_probabilities(model, ids, mask)[counted]
            without: AbstractContextManager[Any] = model.disable_adapter() if base is None else _nothing()
            with without:
                before = _log_probabilities(model if base is None else base, ids, mask)[counted]
            divergence = (before.exp() * (before - after)).sum(-1).double()
            total += divergence.sum().item()
            largest = max(largest, divergence.max().item() if divergence.numel() else 0.0)
            same += int((before.argmax(-1) == after.argmax(-1)).sum())
            tokens += int(counted.sum())
    if not tokens:
        raise ValueError("no token to measure the drift on")
    return TextDrift(total / tokens, largest, same / tokens, tokens)


def _log_probabilities(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    return logits.double().log_softmax(-1)  # in float32 a small divergence rounds below 0


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def _nothing() -> Iterator[None]:
    yield
