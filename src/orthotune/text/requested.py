"""What a user asks of a trainer while it trains, by files in the run directory or signals: taken after each step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from orthotune.runs.checkpoint_on_signal import StopOnSignal
from orthotune.runs.processes import largest
from orthotune.runs.requests import Request, Requests
from orthotune.text.early_stopping import EarlyStopping
from orthotune.text.step_log import StepLog


class Requested(TrainerCallback):
    """After each step: samples, a checkpoint, the end with a checkpoint, or the end in order, as a user asked.

    Requests are taken by the main process and met by all. The end in order is one with a measurement: this callback
    stands before those that measure and decide.

    Args:
        requests: of the run directory.
        stop: ends the run with a checkpoint.
        end: ends the training in order.
        steps: does not count the time of samples as training.
        sample: writes texts of the model at a step.
    """

    def __init__(
        self, requests: Requests, stop: StopOnSignal, end: EarlyStopping, steps: StepLog,
        sample: Callable[[Any, int], None],
    ) -> None:  # fmt: skip
        self.requests, self.stop, self.end, self.steps, self.sample = requests, stop, end, steps, sample

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **seen: Any) -> None:
        asked = Request(largest(int(self.requests.take()) if state.is_world_process_zero else 0))
        if not asked:
            return
        if Request.SAMPLE in asked:
            began = time.monotonic()
            self.sample(seen["model"], state.global_step)
            self.steps.measuring += time.monotonic() - began
        if Request.SAVE in asked:
            control.should_save = True
        if state.global_step >= state.max_steps:
            return
        if Request.STOP in asked:
            self.stop.ask("stop-now")
            control.should_save = control.should_training_stop = True
        elif Request.FINISH in asked:
            self.end.asked = self.steps.asked = True
