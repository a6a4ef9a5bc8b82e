"""A penalty on the change of outputs on texts of the source domain, so that finetuning forgets less of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from orthotune.metrics.text_loss import IGNORED, TokenRow, _pad
from orthotune.runs.adapter_off import adapter_off


@dataclass(frozen=True)
class KeepOutputs:
    """A loss to add (``added_losses.py``): how far the outputs on some texts have moved from those of the base.

    Each step's entry of the log is ``keep_nats``, the mean divergence per counted token.

    Args:
        weight: of the penalty in the loss.
        rows: tokens of texts of the source domain, each row with at least one token that is counted.
        batch: rows beside each batch of training, of all processes together.
        seed: of the choice of rows.
    """

    weight: float
    rows: Sequence[TokenRow]
    batch: int
    seed: int = 0

    def chosen(self, step: int, batch: int = 0) -> list[TokenRow]:
        """The rows beside a batch of ``step``: the same ones in every process and after every resume.

        Example:
            >>> keep = KeepOutputs(1.0, [TokenRow([1, 2], [1, 2]), TokenRow([3, 4], [3, 4])], batch=1)
            >>> keep.chosen(5) == keep.chosen(5)
            True
        """
        # A generator of its own: the order of the data and the random state of the run do not depend on it.
        generator = random.Random(f"{self.seed} {step} {batch}")
        return generator.sample(self.rows, min(self.batch, len(self.rows)))

    def __call__(self, trainer: Any, model: Any, batch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """``weight`` times the mean divergence per counted token, and the entry of the log."""
        accelerator = trainer.accelerator
        processes, process = accelerator.num_processes, accelerator.process_index
        rows = self.chosen(trainer.state.global_step, batch)
        # A process without a row of its own goes through the layers all the same: sharded ones are gathered together.
        mine = rows[process::processes] or [TokenRow(rows[0].input_ids, [IGNORED] * len(rows[0].labels))]
        mean = change_of_outputs(accelerator.unwrap_model(model), mine) / counted(rows)
        entry = accelerator.reduce(mean.detach().clone(), "sum")
        return self.weight * (mean * processes), {"keep_nats": entry}


def divergence(base: Tensor, adapted: Tensor) -> Tensor:
    """KL(base || adapted) in nats, summed over the tokens; with a gradient to ``adapted``.

    Shapes: logits ``(tokens, vocabulary)`` each.

    Example:
        >>> round(divergence(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 3.0]]).log()).item(), 3)
        0.144
    """
    # At least in float32: two near distributions differ by less than a step of bfloat16.
    dtype = torch.promote_types(base.dtype, torch.float32)
    before, after = base.to(dtype).log_softmax(-1), adapted.to(dtype).log_softmax(-1)
    return functional.kl_div(after, before, reduction="sum", log_target=True)


def counted(rows: Sequence[TokenRow]) -> int:
    """How many tokens are predicted and counted: all of a row but its first, and those labelled -100."""
    return sum(label != IGNORED for row in rows for label in row.labels[1:])


def change_of_outputs(model: Any, rows: Sequence[TokenRow]) -> Tensor:
    """KL(base || adapted) of the next-token predictions of ``model``, summed over the counted tokens of ``rows``.

    Units: nats. With a gradient to the adapter; the base is ``model`` with its adapters switched off.
    """
    device = next(model.parameters()).device
    ids, labels, mask = (side.to(device) for side in _pad(list(rows)))
    wanted = labels[:, 1:] != IGNORED

    def logits() -> Tensor:
        found: Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return found[:, :-1][wanted]

    with torch.no_grad(), adapter_off(model):
        base = logits()
    return divergence(base, logits())
