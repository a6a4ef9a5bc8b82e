"""Measures, while a model trains, what it learns (target domain) and what it forgets (source domain)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from orthotune.metrics.text_loss import TokenRow, mean_loss
from orthotune.runs.metrics_log import Line, MetricsLog


class DomainLoss(TrainerCallback):
    """Writes one line of metrics per step, with the loss of each domain before, during and after training.

    Args:
        log: where the lines go.
        domains: rows to measure on, by domain (``new``, ``old``).
        every: steps between two measurements.
    """

    def __init__(self, log: MetricsLog, domains: Mapping[str, Sequence[TokenRow]], every: int) -> None:
        self.log, self.domains, self.every = log, domains, every
        self.trained = float(log.last("seconds") or 0.0)
        self.measured: Line = {}
        self.measuring = 0.0
        self.resumed_at: float = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **seen: Any
    ) -> None:
        if state.global_step == 0:
            self._measure(seen["model"])
            if state.is_world_process_zero:
                self.log.append({"step": 0, "seconds": 0.0, **self.measured})
            self.measured = {}
        # What was measured before training is no training time.
        self.resumed_at, self.measuring = time.monotonic(), 0.0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **seen: Any) -> None:
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            self._measure(seen["model"])

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **seen: Any) -> None:
        logs = seen["logs"]
        if "loss" not in logs or not state.is_world_process_zero:
            return
        self.log.append(
            {
                "step": state.global_step,
                "seconds": round(self.seconds, 3),
                "train_loss": logs["loss"],
                "learning_rate": logs["learning_rate"],
                **({"keep_nats": logs["keep_nats"]} if "keep_nats" in logs else {}),
                **self.measured,
            }
        )
        self.measured = {}

    @property
    def seconds(self) -> float:
        """Seconds of training over all sittings, measuring skipped."""
        return self.trained + time.monotonic() - self.resumed_at - self.measuring

    def _measure(self, model: Any) -> None:
        began = time.monotonic()
        self.measured = {f"{name}_nats": mean_loss(model, rows).nats for name, rows in self.domains.items()}
        self.measuring += time.monotonic() - began
