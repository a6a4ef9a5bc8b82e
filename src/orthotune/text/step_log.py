"""One line of metrics per step of a trainer, and what is measured while the model trains."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from orthotune.metrics.text_loss import TokenRow, mean_loss
from orthotune.runs.metrics_log import Line, MetricsLog, Score, changes

#: model -> numbers by name, which are the keys of a line of metrics.
Measure = Callable[[Any], dict[str, float]]


class StepLog(TrainerCallback):
    """Writes one line of metrics per step, with what is measured before, during and after training.

    Args:
        log: where the lines go.
        measures: of the model.
        every: steps between two measurements.
        entries: names of the trainer's own log that are copied into the lines.
        ends: measures of the model before the first step and after the last one alone, for what takes long.
        score: by which the run gains and forgets; None for the losses of the domains.

    Attributes:
        asked: measure at the end of the present step, too; set before this callback.
        measured: what was measured at the current step, in every process; empty at the other steps. ``gain`` and
            ``forgetting`` are in the main process alone, which has the lines.
    """

    def __init__(
        self,
        log: MetricsLog,
        measures: Sequence[Measure],
        every: int,
        entries: Sequence[str] = (),
        ends: Sequence[Measure] = (),
        score: Score | None = None,
    ) -> None:
        self.log, self.measures, self.every, self.entries = log, tuple(measures), every, tuple(entries)
        self.ends = tuple(ends)
        self.changes = changes if score is None else score.changes
        self.trained = float(log.last("seconds") or 0.0)
        self.asked = False
        self.measured: Line = {}
        self.measuring = 0.0
        self.resumed_at: float = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **seen: Any
    ) -> None:
        if state.global_step == 0:
            self._measure(seen["model"], self.measures + self.ends, 0)
            if state.is_world_process_zero:
                self.log.append({"step": 0, "seconds": 0.0, **self.measured})
        # What was measured before training is no training time.
        self.resumed_at, self.measuring = time.monotonic(), 0.0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **seen: Any) -> None:
        self.measured = {}
        if state.global_step >= state.max_steps:
            self._measure(seen["model"], self.measures + self.ends, state.global_step)
        elif state.global_step % self.every == 0 or self.asked:
            self._measure(seen["model"], self.measures, state.global_step)
        self.asked = False

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
                **{name: logs[name] for name in self.entries if name in logs},
                **self.measured,
            }
        )

    @property
    def seconds(self) -> float:
        """Seconds of training over all sittings, measuring skipped."""
        return self.trained + time.monotonic() - self.resumed_at - self.measuring

    def _measure(self, model: Any, measures: Sequence[Measure], step: int) -> None:
        began = time.monotonic()
        measured = {name: value for measure in measures for name, value in measure(model).items()}
        before = {name: self.log.first(name) for name in measured} if step else measured
        self.measured = measured | self.changes(before, measured)
        self.measuring += time.monotonic() - began


@dataclass(frozen=True)
class DomainLosses:
    """The measure of what a model learns and forgets, as :func:`domain_losses` makes it.

    Args:
        domains: rows to measure on, by domain.
    """

    domains: Mapping[str, Sequence[TokenRow]]

    def __call__(self, model: Any) -> dict[str, float]:
        """The loss of each domain, ``new_nats`` and ``old_nats``, in nats per token."""
        return {f"{name}_nats": mean_loss(model, rows).nats for name, rows in self.domains.items()}


def domain_losses(domains: Mapping[str, Sequence[TokenRow]]) -> Measure:
    """The measure of what a model learns (target domain, ``new``) and forgets (source domain, ``old``).

    Args:
        domains: rows to measure on, by domain.

    Returns:
        a function from a model to the loss of each domain, ``new_nats`` and ``old_nats``, in nats per token.
    """
    return DomainLosses(domains)
