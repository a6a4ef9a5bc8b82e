"""A progress bar with the losses, in place of the trainer's printed dictionaries."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from orthotune.training.metrics_log import MetricsLog


class ProgressBar(TrainerCallback):
    """Shows step, time left and the newest losses on stderr.

    Args:
        log: the metrics to show; another callback fills it.
        title: what stands before the bar.
        visible: False shows nothing.
    """

    def __init__(self, log: MetricsLog, title: str, visible: bool = True) -> None:
        self.log, self.title = log, title
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
            console=Console(stderr=True),
            disable=not visible,
        )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **seen: Any
    ) -> None:
        if state.is_world_process_zero:
            self.bar.start()
            self.task = self.bar.add_task(self.title, total=state.max_steps, completed=state.global_step, losses="")

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **seen: Any) -> None:
        if state.is_world_process_zero and self.bar.tasks:
            shown = {"loss": "train_loss", "new": "new_nats", "old": "old_nats"}
            values = {name: self.log.last(key) for name, key in shown.items()}
            losses = "  ".join(f"{name} {value:.3f}" for name, value in values.items() if value is not None)
            self.bar.update(self.task, completed=state.global_step, losses=losses)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **seen: Any) -> None:
        self.close()

    def close(self) -> None:
        """Leave the terminal as it was, whatever ended the training."""
        self.bar.stop()
