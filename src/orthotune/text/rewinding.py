"""The losses of a finished language model on which its strengths are chosen."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from orthotune.metrics.text_loss import TokenRow, batch_nats, row_losses
from orthotune.runs.layer_strengths import LayerStrengths
from orthotune.runs.rewinding import Rewinding

Rows = Mapping[str, Sequence[TokenRow]]


class TextRewinding(Rewinding):
    """A finished language model and the texts on which its strengths are chosen.

    Args:
        model: the adapted or trained model, in evaluation mode.
        layers: its strengths.
        rows: tokens of held-out texts, by domain: ``new`` and ``old``.
    """

    def __init__(self, model: nn.Module, layers: LayerStrengths, rows: Rows) -> None:
        self.rows = rows
        super().__init__(model, layers)

    def losses(self, domain: str) -> Sequence[tuple[float, int]]:
        """Sum of nats and number of tokens of each row.

        Args:
            domain: ``new`` or ``old``.
        """
        return row_losses(self.model, self.rows[domain])

    def backward(self, domain: str, amount: int, factor: float, draw: random.Random) -> None:
        """Add the gradients of ``factor`` times the nats per token of some rows.

        Args:
            domain: ``new`` or ``old``.
            amount: tokens.
            factor: of the loss.
            draw: chooses the rows.
        """
        _backward(self.model, _chosen(self.rows[domain], amount, draw), factor)


def overlap(new: Sequence[TokenRow], old: Sequence[TokenRow], length: int = 13) -> float:
    """The share of old rows that have a passage in common with any new row.

    Args:
        new: rows of tokens.
        old: rows of tokens; the result is about these.
        length: tokens of a passage; 13 is what evaluations commonly use to find contaminated texts.

    Returns:
        0 to 1; rows that are shorter than a passage are compared as they are.

    Example:
        >>> overlap([TokenRow([1, 2, 3], [])], [TokenRow([1, 2, 3], []), TokenRow([3, 2, 1], [])])
        0.5
    """

    def passages(row: TokenRow) -> set[tuple[int, ...]]:
        ids = row.input_ids
        return {tuple(ids[at : at + length]) for at in range(max(1, len(ids) - length + 1))}

    known = set().union(*(passages(row) for row in new)) if new else set()
    return sum(bool(passages(row) & known) for row in old) / len(old) if old else 0.0


def _chosen(rows: Sequence[TokenRow], tokens: int, draw: random.Random) -> list[TokenRow]:
    chosen: list[TokenRow] = []
    for index in draw.sample(range(len(rows)), len(rows)):
        chosen.append(rows[index])
        if sum(len(row.input_ids) for row in chosen) >= tokens:
            break
    return chosen


def _backward(model: Any, rows: Sequence[TokenRow], factor: float) -> None:
    total, count = batch_nats(model, rows)
    (factor * total / count).backward()
