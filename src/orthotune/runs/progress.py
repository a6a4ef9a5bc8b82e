"""A progress bar with the losses, in place of the trainer's printed dictionaries."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from orthotune.runs.metrics_log import CHANGES, MetricsLog

#: Columns of a terminal that has room for the losses of the domains beside their changes.
WIDE = 100


class StepBar:
    """Shows step, time left and some numbers on stderr; without a terminal a line at the first and the last step and
    every few seconds.

    Args:
        title: what stands before the bar.
        visible: False shows nothing.
        seconds: between two lines without a terminal.

    Example:
        >>> bar = StepBar("oft", visible=False)
        >>> bar.start(total=10)
        >>> bar.show(1, {"loss": 0.5})
        >>> bar.close()
    """

    def __init__(self, title: str, visible: bool = True, seconds: float = 10.0) -> None:
        self.title, self.seconds = title, seconds
        console = Console(stderr=True)
        self.lines = visible and not console.is_terminal
        self.total = self.first = 0
        self.began = self.printed = 0.0
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
            console=console,
            disable=not visible or self.lines,
        )

    def start(self, total: int, completed: int = 0) -> None:
        """Begin at step ``completed`` of ``total``."""
        self.total, self.first, self.began = total, completed, time.monotonic()
        self.bar.start()
        self.task = self.bar.add_task(self.title, total=total, completed=completed, losses="")

    def show(
        self, step: int, values: Mapping[str, float | None], changes: Mapping[str, float | None] | None = None
    ) -> None:
        """Go on to a step.

        Args:
            step: that is done.
            values: by name; those that are None are skipped.
            changes: shown with their sign, before the values: a narrow terminal cuts off the end of the line.
        """
        if self.bar.tasks:
            words = [f"{name} {value:+.3f}" for name, value in (changes or {}).items() if value is not None]
            words += [f"{name} {value:.3f}" for name, value in values.items() if value is not None]
            self.bar.update(self.task, completed=step, losses="  ".join(words))
            if self.lines:
                self._line(step, words)

    def aside(self, words: str) -> None:
        """Show what is done between two steps, in the place of the numbers.

        Args:
            words: such as "samples 3/8".
        """
        if not self.bar.tasks:
            return
        self.bar.update(self.task, losses=words)
        now = time.monotonic()
        if self.lines and now - self.printed >= self.seconds:
            self.printed = now
            print(f"{self.title}  {words}", file=sys.stderr, flush=True)

    def _line(self, step: int, words: list[str]) -> None:
        now = time.monotonic()
        ends = step in (self.first + 1, self.total)
        if not ends and now - self.printed < self.seconds:
            return
        self.printed = now
        each = (now - self.began) / max(1, step - self.first)
        left = f"  {_spoken(each * (self.total - step))} left" if step < self.total else ""
        print(f"{self.title}  step {step}/{self.total}  {'  '.join(words)}{left}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was, whatever ended the work."""
        self.bar.stop()


def _spoken(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class ProgressBar(TrainerCallback):
    """A ``StepBar`` for transformers' trainer.

    Args:
        log: the metrics to show; another callback fills it.
        title: what stands before the bar.
        visible: False shows nothing.
    """

    def __init__(self, log: MetricsLog, title: str, visible: bool = True) -> None:
        self.log, self.bar = log, StepBar(title, visible)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **seen: Any
    ) -> None:
        if state.is_world_process_zero:
            self.bar.start(state.max_steps, state.global_step)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **seen: Any) -> None:
        if state.is_world_process_zero:
            changes = {name: self.log.last(name) for name in CHANGES.values()}
            shown = {"loss": "train_loss", "new": "new_nats", "old": "old_nats"}
            if self.bar.bar.console.width < WIDE and any(value is not None for value in changes.values()):
                shown = {"loss": "train_loss"}
            self.bar.show(state.global_step, {name: self.log.last(key) for name, key in shown.items()}, changes)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **seen: Any) -> None:
        self.close()

    def close(self) -> None:
        """Leave the terminal as it was, whatever ended the training."""
        self.bar.close()
