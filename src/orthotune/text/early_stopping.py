"""Rules that end a training at a measurement: too much is forgotten, enough is gained, or nothing gets better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from orthotune.errors import RecipeError
from orthotune.runs import processes
from orthotune.runs.metrics_log import Line, MetricsLog, measurements, net_gain
from orthotune.text.step_log import StepLog


@dataclass(frozen=True)
class Reached:
    """A rule that ended a training, or a user's wish.

    Args:
        rule: its key in the setting ``stop_when``; ``finish-now`` for the file of that name.
        limit: its value there; None for the file.
        step: of the measurement.
        gain, forgetting: measured there, in nats per token or in units of the run's score; None where not measured.
        best_step: of ``patience``, the step with the largest gain - forgetting.
    """

    rule: str
    limit: float | None
    step: int
    gain: float | None
    forgetting: float | None
    best_step: int | None = None

    def record(self) -> dict[str, Any]:
        """The fields in JSON types, without what has no meaning for the rule."""
        return {key: value for key, value in vars(self).items() if value is not None}

    def sentence(self, steps: int, unit: str = "nats per token") -> str:
        """The message about it.

        Args:
            steps: that the run was to make.
            unit: of gain and forgetting.

        Example:
            >>> Reached("gain", 0.5, 40, 0.512, 0.01).sentence(200)
            'stop_when.gain=0.5 ended the training after step 40 of 200: gain +0.512, forgetting +0.010 nats per token.'
        """
        if self.limit is None:
            return f"{self.rule} ended the training after step {self.step} of {steps}."
        values = {"gain": self.gain, "forgetting": self.forgetting}
        measured = ", ".join(f"{name} {value:+.3f}" for name, value in values.items() if value is not None)
        best = "" if self.best_step is None else f"; gain - forgetting was largest at step {self.best_step}"
        return (
            f"stop_when.{self.rule}={self.limit:g} ended the training after step {self.step} of {steps}: "
            f"{measured} {unit}{best}."
        )


def asked_to_finish(step: int) -> Reached:
    """What ended a training that a user asked to finish.

    Args:
        step: the last one.

    Example:
        >>> asked_to_finish(40).sentence(200)
        'finish-now ended the training after step 40 of 200.'
    """
    return Reached("finish-now", None, step, None, None)


@dataclass(frozen=True)
class StopRules:
    """Rules that end a training at a measurement; None is no rule.

    Args:
        forgetting: more nats per token than this are forgotten.
        gain: at least so many nats per token are gained.
        patience: so many measurements in a row were without a larger gain - forgetting.

    Example:
        >>> StopRules(gain=0.5).reached([{"step": 0, "gain": 0.0}, {"step": 10, "gain": 0.6}]).step
        10
    """

    forgetting: float | None = None
    gain: float | None = None
    patience: int | None = None

    def require(self, measured: Mapping[str, Any]) -> None:
        """Refuse a rule about a loss that is not measured.

        Raises:
            RecipeError: names the rule and the domain.
        """
        for rule, change, domain in (
            ("forgetting", "forgetting", "source"), ("gain", "gain", "target"), ("patience", "gain", "target")
        ):  # fmt: skip
            if getattr(self, rule) is not None and change not in measured:
                raise RecipeError(
                    f"stop_when.{rule}", got=f"a run that measures no loss of the {domain} domain", do="Leave it out"
                )

    def reached(self, measured: Sequence[Line]) -> Reached | None:
        """The rule that holds at the last measurement, or None.

        Args:
            measured: all measurements of the run, each with ``step``, ``gain`` and ``forgetting``.
        """
        if not measured:
            return None
        now = measured[-1]
        step, gain, forgetting = now["step"], now.get("gain"), now.get("forgetting")
        if self.forgetting is not None and forgetting is not None and forgetting > self.forgetting:
            return Reached("forgetting", self.forgetting, step, gain, forgetting)
        if self.gain is not None and gain is not None and gain >= self.gain:
            return Reached("gain", self.gain, step, gain, forgetting)
        if self.patience is not None:
            nets = [-math.inf if (net := net_gain(line)) is None else net for line in measured]
            best = nets.index(max(nets))
            if len(nets) - 1 - best >= self.patience:
                return Reached("patience", self.patience, step, gain, forgetting, measured[best]["step"])
        return None


class EarlyStopping(TrainerCallback):
    """After a measurement at which a rule holds: a checkpoint, then the end, in all processes.

    Args:
        rules: that end the training.
        log: of the run; the main process alone has its lines, and decides.
        steps: measures, before this callback.

    Attributes:
        asked: a user asks for the end after the present step; set before this callback.
        reached: the rule that ended the training.
    """

    def __init__(self, rules: StopRules, log: MetricsLog, steps: StepLog) -> None:
        self.rules, self.log, self.steps = rules, log, steps
        self.asked = False
        self.reached: Reached | None = None

    def at(self, step: int) -> Reached | None:
        """The rule that held at a step, when that is the last one in the log: of a run that is gone on with."""
        measured = measurements(self.log.lines)
        held = measured and measured[-1]["step"] == step
        self.reached = processes.from_main(lambda: self.rules.reached(measured) if held else None)
        return self.reached

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **seen: Any
    ) -> None:
        if state.global_step == 0:
            processes.from_main(lambda: self.rules.require(self.steps.measured))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **seen: Any) -> None:
        if state.global_step >= state.max_steps or not (self.steps.measured or self.asked):
            return
        if self.steps.measured:
            now = {"step": state.global_step, **self.steps.measured}
            self.reached = processes.from_main(lambda: self.rules.reached([*measurements(self.log.lines), now]))
        if self.asked and self.reached is None:
            self.reached = asked_to_finish(state.global_step)
        if self.reached is not None:
            control.should_save = control.should_training_stop = True
