"""TRL's trainer with a learning rate of their own for magnitudes."""

from __future__ import annotations

from typing import Any

from orthotune.runs.magnitude_rate import give_magnitudes_a_rate
from orthotune.text.checkpoint_trainer import CheckpointTrainer


class RatedTrainer(CheckpointTrainer):
    """Trains magnitudes at ``magnitude_factor`` times the learning rate; 1, as at first, is the rate of all."""

    magnitude_factor: float = 1.0

    def create_optimizer(self, model: Any = None) -> Any:
        """The trainer's own, with a group for the magnitudes."""
        known = self.optimizer
        optimizer = super().create_optimizer(model)
        if known is None:
            give_magnitudes_a_rate(optimizer, self.model if model is None else model, self.magnitude_factor)
        return optimizer
