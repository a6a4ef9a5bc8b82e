"""The loss of a causal language model on texts, in nats per token."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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
    rows: list[TokenRow] = []
    for text in texts:
        ids = list(tokenizer(text)["input_ids"])
        if tokenizer.eos_token_id is not None and ids[-1:] != [tokenizer.eos_token_id]:
            ids.append(tokenizer.eos_token_id)
        rows += pieces(ids, max_length)
    return rows


def pieces(ids: list[int], max_length: int) -> list[TokenRow]:
    """Rows of at most ``max_length`` tokens of one text, neighbouring ones with one token in common.

    Example:
        >>> [row.input_ids for row in pieces([1, 2, 3, 4], 3)]
        [[1, 2, 3], [3, 4]]
    """
    found = [ids[start : start + max_length] for start in range(0, len(ids) - 1, max_length - 1)]
    return [TokenRow(piece, piece) for piece in found]


def mean_loss(model: nn.Module, rows: Sequence[TokenRow]) -> TextLoss:
    """The mean loss of ``model`` over all counted tokens of ``rows``; padding does not count.

    Args:
        model: a causal language model.
        rows: the tokens.

    Units: nats per token.

    Raises:
        ValueError: no token to count.
    """
    total, tokens = 0.0, 0
    for _, losses, counts in _measured(model, rows):
        total += losses.sum().item()
        tokens += int(counts.sum())
    if not tokens:
        raise ValueError("no token to measure the loss on")
    return TextLoss(total / tokens, tokens)


def row_losses(model: nn.Module, rows: Sequence[TokenRow]) -> list[tuple[float, int]]:
    """The loss of ``model`` on each row.

    Args:
        model: a causal language model.
        rows: tokens, each row by itself.

    Returns:
        For each row, in the order of ``rows``, the sum of nats over its counted tokens, and their number.

    Example:
        >>> row_losses(model, [TokenRow([1, 2], [1, 2])])  # doctest: +SKIP
        [(3.2, 1)]
    """
    found: dict[int, tuple[float, int]] = {}
    for places, losses, counts in _measured(model, rows):
        sums = zip(losses.sum(1).tolist(), counts.tolist(), strict=True)
        found |= dict(zip(places, sums, strict=True))
    return [found[place] for place in range(len(rows))]


def batches_of(model: nn.Module, rows: Sequence[TokenRow]) -> Iterator[list[int]]:
    """The places in ``rows`` of each batch in which they are measured.

    Args:
        model: a causal language model.
        rows: to measure.
    """
    return _batches(rows, _vocabulary(model))


def batch_nats(model: Any, rows: Sequence[TokenRow]) -> tuple[torch.Tensor, int]:
    """The loss of one batch, with its gradient.

    Args:
        model: a causal language model.
        rows: the batch.

    Returns:
        The sum of nats over the counted tokens, and their number.
    """
    losses, counts = _forward(model, list(rows))
    return losses.sum(), int(counts.sum())


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


@torch.no_grad()
def _measured(model: nn.Module, rows: Sequence[TokenRow]) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """Places in ``rows``, float64 losses ``(rows, tokens)`` and counts ``(rows,)``, batch by batch, in evaluation."""
    was_training = model.training
    model.eval()
    try:
        for places in _batches(rows, _vocabulary(model)):
            losses, counts = _forward(model, [rows[place] for place in places])
            yield places, losses.double(), counts
    finally:
        model.train(was_training)


def _forward(model: Any, batch: list[TokenRow]) -> tuple[torch.Tensor, torch.Tensor]:
    device = next(model.parameters()).device
    ids, labels, mask = (side.to(device) for side in _pad(batch))
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    wanted = labels[:, 1:]
    losses = nn.functional.cross_entropy(
        logits.float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return losses.view(wanted.shape), (wanted != IGNORED).sum(1)


def _batches(rows: Sequence[TokenRow], vocabulary: int) -> Iterator[list[int]]:
    """The places of rows of like length together, so many that the logits stay small."""
    room = max(256, LOGITS_AT_ONCE // vocabulary)
    batch: list[int] = []
    for place in sorted(range(len(rows)), key=lambda place: -len(rows[place].input_ids)):
        if batch and (len(batch) + 1) * len(rows[batch[0]].input_ids) > room:
            yield batch
            batch = []
        batch.append(place)
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
