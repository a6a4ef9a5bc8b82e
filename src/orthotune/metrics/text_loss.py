"""The loss of a causal language model on texts, in nats per token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

LOGITS_AT_ONCE = 2**26
IGNORED = -100


@dataclass(frozen=True)
class TokenRow:
    """Tokens of one forward; tokens labelled -100 are read but not counted."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class TextLoss:
    """Mean loss in nats per counted token, and the number of counted tokens."""

    nats: float
    tokens: int


def token_rows(tokenizer: Any, texts: Iterable[str], max_length: int) -> list[TokenRow]:
    """Add the end token to each text and cut it into rows of at most ``max_length`` tokens.

    Neighbouring rows of a text share one token, so that each token except the first of a text is predicted exactly
    once.

    Args:
        tokenizer: of the model.
        texts: the texts.
        max_length: tokens per row.
    """
    rows = []
    for text in texts:
        ids = list(tokenizer(text)["input_ids"])
        if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
            ids.append(tokenizer.eos_token_id)
        for start in range(0, len(ids) - 1, max_length - 1):
            piece = ids[start : start + max_length]
            rows.append(TokenRow(piece, piece))
    return rows


@torch.no_grad()
def mean_loss(model: nn.Module, rows: Sequence[TokenRow]) -> TextLoss:
    """The mean loss of ``model`` over all counted tokens of ``rows``; padding does not count.

    Args:
        model: a causal language model.
        rows: the tokens.

    Units: nats per token.

    Raises:
        ValueError: no token to count.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total, tokens = 0.0, 0
    try:
        for batch in _batches(rows, _vocabulary(model)):
            ids, labels, mask = (side.to(device) for side in _pad(batch))
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
            wanted = labels[:, 1:]
            losses = nn.functional.cross_entropy(
                logits.float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none"
            )
            total += losses.double().sum().item()
            tokens += int((wanted != IGNORED).sum())
    finally:
        model.train(was_training)
    if not tokens:
        raise ValueError("no token to measure the loss on")
    return TextLoss(total / tokens, tokens)


def nats_per_token(model: nn.Module, tokenizer: Any, texts: Iterable[str], max_length: int = 1024) -> TextLoss:
    """The loss of a causal language model over ``texts``.

    Args:
        model: a causal language model.
        tokenizer: of the model.
        texts: the texts.
        max_length: tokens per forward.

    Example:
        >>> nats_per_token(model, tokenizer, ["Hello world"]).tokens  # doctest: +SKIP
        2
    """
    return mean_loss(model, token_rows(tokenizer, texts, max_length))


def _vocabulary(model: nn.Module) -> int:
    config = model.config
    return int(config.get_text_config().vocab_size)  # type: ignore[operator, union-attr]


def _batches(rows: Sequence[TokenRow], vocabulary: int) -> Iterable[list[TokenRow]]:
    """Batches of rows of similar length, small enough that the logits fit into memory."""
    room = max(256, LOGITS_AT_ONCE // vocabulary)
    batch: list[TokenRow] = []
    for row in sorted(rows, key=lambda row: -len(row.input_ids)):
        if batch and (len(batch) + 1) * len(batch[0].input_ids) > room:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _pad(batch: list[TokenRow]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    shape = (len(batch), max(len(row.input_ids) for row in batch))
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED)
    for index, row in enumerate(batch):
        length = len(row.input_ids)
        ids[index, :length] = torch.tensor(row.input_ids)
        labels[index, :length] = torch.tensor(row.labels)
        mask[index, :length] = 1
    return ids, labels, mask
