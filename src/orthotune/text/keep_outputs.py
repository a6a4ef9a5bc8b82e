"""A penalty on the change of outputs on old texts, so that finetuning forgets less of them."""

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
from orthotune.text.rated_trainer import RatedTrainer


@dataclass(frozen=True)
class KeepOutputs:
    """What is kept, and how strongly.

    Args:
        weight: of the penalty in the loss.
        rows: tokens of old texts, each row with at least one that is counted.
        batch: rows beside each batch of training, of all processes together.
        seed: of the draw.
    """

    weight: float
    rows: Sequence[TokenRow]
    batch: int
    seed: int = 0

    def drawn(self, step: int, part: int = 0) -> list[TokenRow]:
        """The rows beside the batch ``part`` of ``step``: the same ones in every process and after every resume.

        Example:
            >>> keep = KeepOutputs(1.0, [TokenRow([1, 2], [1, 2]), TokenRow([3, 4], [3, 4])], batch=1)
            >>> keep.drawn(5) == keep.drawn(5)
            True
        """
        # A generator of its own: the order of the data and the random state of the run do not depend on it.
        draw = random.Random(f"{self.seed} {step} {part}")
        return draw.sample(self.rows, min(self.batch, len(self.rows)))


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


class KeepingTrainer(RatedTrainer):
    """Adds to the loss how far the outputs on old texts have moved; each step's log line has it as ``keep_nats``.

    ``keep`` says what is kept; None, as at first, keeps nothing and costs nothing.
    """

    keep: KeepOutputs | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._step, self._parts = -1, list[Tensor]()  # what was found for the batches of a step until now

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The trainer's own loss, and in training ``keep.weight`` times the mean divergence per counted token."""
        if self.keep is None or return_outputs or not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        # First, so that the base's forward meets no graph of the other loss in memory.
        penalty = self._penalty(model, self.keep)
        # Where the loss is divided by the tokens of all parts of a step, nobody divides the sum of the parts again.
        parts = 1 if num_items_in_batch is None else self.current_gradient_accumulation_steps
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        return loss + self.keep.weight * penalty / parts

    def _penalty(self, model: Any, keep: KeepOutputs) -> Tensor:
        processes, process = self.accelerator.num_processes, self.accelerator.process_index
        if self._step != self.state.global_step:
            self._step, self._parts = self.state.global_step, []
        drawn = keep.drawn(self._step, len(self._parts))
        # A process without a row of its own goes through the layers all the same: sharded ones are gathered together.
        mine = drawn[process::processes] or [TokenRow(drawn[0].input_ids, [IGNORED] * len(drawn[0].labels))]
        mean = change_of_outputs(self.accelerator.unwrap_model(model), mine) / counted(drawn)
        self._parts.append(self.accelerator.reduce(mean.detach().clone(), "sum"))
        return mean * processes  # gradients of the processes are averaged

    def log(self, logs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """As the trainer's own, with ``keep_nats``, the mean over the batches of the step."""
        if "loss" in logs and self._parts:
            logs = {**logs, "keep_nats": torch.stack(self._parts).mean().item()}
        super().log(logs, *args, **kwargs)
