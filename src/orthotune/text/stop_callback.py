"""A signal ends the training of a trainer after the step in which it came, with a checkpoint."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from orthotune.runs.checkpoint_on_signal import StopOnSignal
from orthotune.runs.processes import largest


class StopCallback(TrainerCallback):
    """After the step in which a signal came: a checkpoint, then the end.

    Args:
        stop: handles the signals; while the trainer trains, the first one only asks to stop.
    """

    def __init__(self, stop: StopOnSignal) -> None:
        self.stop = stop

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **seen: Any
    ) -> None:
        self.stop.patient = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **seen: Any) -> None:
        self.stop.number = largest(self.stop.number)  # a signal may have come to one of several processes
        if self.stop.asked:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **seen: Any) -> None:
        self.stop.patient = False
