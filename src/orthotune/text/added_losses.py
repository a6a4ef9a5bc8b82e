"""Losses that a run adds to the loss of a trainer, as functions of the trainer and the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

#: (trainer, model, batch) -> what is added to the loss of that batch, and the entries of the log. ``batch`` counts the
#: batches of a step from 0. In a run of several processes, whose gradients are averaged, each process gives its part
#: times the number of processes; the entries are those of all of them.
AddedLoss = Callable[[Any, Any, int], tuple[Tensor, dict[str, Tensor]]]
#: trainer -> a loss to add; called once, when training begins.
LossMaker = Callable[[Any], AddedLoss]


class AddedLosses:
    """The losses that are added in the batches of a step, and the means of what they log.

    Args:
        makers: make the losses when training begins.

    Example:
        >>> from types import SimpleNamespace as Stub
        >>> def ones(trainer, model, batch):
        ...     return torch.ones(()), {"ones": torch.ones(())}
        >>> added = AddedLosses([lambda trainer: ones])
        >>> trainer = Stub(state=Stub(global_step=0))
        >>> added.start(trainer)
        >>> added(trainer, None), added.entries()
        ([tensor(1.)], {'ones': 1.0})
    """

    def __init__(self, makers: Sequence[LossMaker]) -> None:
        self.makers = makers
        self._losses: list[AddedLoss] = []
        self._step, self._batches = -1, 0
        self._entries: dict[str, list[Tensor]] = {}

    def __bool__(self) -> bool:
        return bool(self._losses)

    def start(self, trainer: Any) -> None:
        """Make the losses: the data of ``trainer`` is tokenized and its model is in its place."""
        self._losses = [make(trainer) for make in self.makers]

    def __call__(self, trainer: Any, model: Any) -> list[Tensor]:
        """What each loss adds to the next batch of the step."""
        if self._step != trainer.state.global_step:
            self._step, self._batches, self._entries = trainer.state.global_step, 0, {}
        added = []
        for loss in self._losses:
            value, entries = loss(trainer, model, self._batches)
            added.append(value)
            for name, entry in entries.items():
                self._entries.setdefault(name, []).append(entry)
        self._batches += 1
        return added

    def entries(self) -> dict[str, float]:
        """The mean of each entry over the batches of the last step."""
        return {name: torch.stack(values).mean().item() for name, values in self._entries.items()}
