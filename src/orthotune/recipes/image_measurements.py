"""What an image run measures while it trains: scores of generated images, and the loss on held-out images.

The loss decides which parameters are kept and when the training ends, by the same rules as for language models.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from orthotune.image.held_out import HeldOutLoss
from orthotune.image.loop.options import LoopOptions
from orthotune.image.loop.order import Dataset
from orthotune.image.loop.trainee import Trainee
from orthotune.recipes.image_job import ImageJob
from orthotune.recipes.image_settings import ImageSettings
from orthotune.runs import processes
from orthotune.runs.metrics_log import Line, MetricsLog, Score, measurements
from orthotune.text.best_parameters import BestParameters
from orthotune.text.early_stopping import Reached, StopRules, asked_to_finish

#: The loss by which an image run gains and, on class images, forgets.
LOSS = Score("held_out_loss", higher_is_better=False)
UNIT = "in units of the denoiser's loss"
#: Measurements after the first one, where the settings leave them open.
MEASUREMENTS = 5


class Measurements:
    """Measures at some steps of the loop, keeps the best parameters, and says when the training ends.

    Args:
        settings: of the run.
        job: gives the scores.
        held: held-out images by domain; empty without any.
        trainee: the model.
        device: of the model.
    """

    def __init__(
        self, settings: ImageSettings, job: ImageJob, held: Mapping[str, Dataset], trainee: Trainee,
        device: torch.device,
    ) -> None:  # fmt: skip
        self.settings, self.job, self.family = settings, job, trainee.family
        options = LoopOptions.of(settings).loss
        self.loss = HeldOutLoss(trainee, held, settings.batch_size, options, device) if held else None
        self.rules = StopRules(**settings.stop_when)
        self.best = BestParameters(None) if settings.result == "best" else None
        self.reached: Reached | None = None
        self.names: tuple[str, ...] = ()
        self.lines: list[Line] = []

    @property
    def every(self) -> int | None:
        """Steps between measurements."""
        usual = max(1, self.settings.steps // MEASUREMENTS) if self.loss else None
        return self.settings.eval_every or usual

    def __call__(self, step: int, trainee: Trainee, log: MetricsLog) -> None:
        """Measure; called by the loop."""
        found = {name: value for one in self.job.scores for name, value in one(step, self.family).items()}
        losses = self.loss() if self.loss else {}
        self.names = (*found, *losses)
        line: Line = {"step": step, "seconds": log.last("seconds") or 0.0, **found, **losses}
        if losses:
            before = {name: log.first(name) for name in losses}
            line |= LOSS.changes({name: losses[name] if old is None else old for name, old in before.items()}, losses)
            # After a resume the step of the checkpoint is measured again.
            earlier = {one["step"]: one for one in measurements(log.lines) if one["step"] < step}
            self.lines = [*earlier.values(), line]
            if step == 0:
                self.rules.require(line)
            if self.best is not None:
                self.best.see(trainee, step, line)
        if self.names:
            log.append(line)

    def ends(self, step: int) -> bool:
        """Whether a rule holds at a step, the main process decides; or whether a user asked for the end there."""
        if self.reached is not None and self.reached.limit is None:
            return True
        if not self.settings.stop_when:
            return False
        held = bool(self.lines) and self.lines[-1]["step"] == step
        self.reached = processes.from_main(lambda: self.rules.reached(self.lines) if held else None)
        return self.reached is not None

    def finish(self, step: int) -> None:
        """End the training in order, as a user asked.

        Args:
            step: the last one.
        """
        self.reached = asked_to_finish(step)

    def notes(self, steps: int) -> list[str]:
        """Sentences about the end of the training and the parameters that were kept.

        Args:
            steps: that the run was to make.
        """
        found = [self.reached.sentence(steps, UNIT)] if self.reached else []
        if self.best is not None:
            step = self.best.step
            found.append(
                "result=best: no measurement was finite, and the result is that of the last step."
                if step is None
                else "result=best: no measurement gained more than it forgot, and the result is the base."
                if step == 0
                else f"result=best: the result is that of step {step}, where gain - forgetting was largest."
            )
        return found

    def results(self, log: MetricsLog) -> dict[str, Any]:
        """The scores before and after, and what ended the run, as fields of its record."""
        kept = self.best.step if self.best is not None else None
        return {
            "scores_before": {name: log.first(name) for name in self.names},
            "scores_after": {name: log.last(name, kept) for name in self.names},
            "stopped_by": self.reached.record() if self.reached else None,
            "result_step": kept,
        }

    def save(self, folder: Path) -> None:
        """Write the best parameters into a checkpoint."""
        if self.best is not None:
            self.best.save(folder)

    def load(self, checkpoint: Path | None) -> None:
        """Read the best parameters of the checkpoint that a run goes on from."""
        if self.best is not None and checkpoint is not None:
            self.best.load(checkpoint)

    def restore(self, trainee: Trainee) -> None:
        """Put the best parameters into the model."""
        if self.best is not None and self.best.step is not None:
            self.best.restore(trainee)
