"""Steps of an image run that are left out since their loss or gradient is not finite: where it began, how many."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from orthotune.errors import TrainingError
from orthotune.image.data.batch import Batch
from orthotune.image.loop.checkpoint import Progress
from orthotune.image.loop.draw import draw_for
from orthotune.image.loop.options import LoopOptions
from orthotune.image.loop.trainee import Trainee
from orthotune.runs.failed_save import kept
from orthotune.runs.nonfinite import Kind, first_bad_gradient, first_bad_output, skipped_message

#: Overflows in a row after which half precision's scaler will not find a scale. It begins with 2**16, too high on
#: purpose, and halves it.
OVERFLOWS = 20


class SkippedSteps:
    """Names the layer in which a step went wrong, counts such steps, and ends the run when they are too many.

    Args:
        trainee: what is trained.
        options: how; ``max_skipped`` steps are borne.
        home: the folder of the run's checkpoints.
        say: told about each step.
        alone: whether this is the only process: a forward of one of several would wait for the others.
    """

    def __init__(
        self, trainee: Trainee, options: LoopOptions, home: Path, say: Callable[[str], None], alone: bool
    ) -> None:
        self.trainee, self.options, self.home, self.say, self.alone = trainee, options, home, say, alone
        self._bad: tuple[int, Batch] | None = None
        self._overflows = 0

    def look(self, loss: Tensor, number: int, batch: Batch) -> None:
        """Remember the step's first batch whose loss is not finite; ``number`` is what chance was drawn for."""
        if self._bad is None and not bool(loss.isfinite()):
            self._bad = number, batch

    def layer(self, kind: Kind) -> str | None:
        """Where the step went wrong; to be asked before its gradients are clipped, which spreads NaN over all."""
        if self._bad is None or kind == "gradient" or not self.alone:
            return first_bad_gradient(self.trainee)
        number, batch = self._bad
        inputs: dict[str, Any] = {"batch": batch, "options": self.options.loss}
        return first_bad_output(self.trainee, inputs | {"draw": draw_for(self.options.seed, number)})

    def count(self, progress: Progress, kind: Kind | None, layer: str | None, overflow: bool) -> None:
        """Note how the step ended; ``kind`` is None where nothing is amiss or half precision's scaler met an overflow.

        Raises:
            TrainingError: more than ``max_skipped`` of the run, or a scaler that finds no scale; names the layer and
                the checkpoint that is kept.
        """
        self._bad = None
        self._overflows = self._overflows + 1 if overflow and kind is None else 0
        if kind is not None:
            progress.skipped += 1
            advice = "Lower learning_rate, or use mixed_precision=no or bf16"
            counted = (progress.skipped, self.options.max_skipped)
            self.say(skipped_message(progress.step, kind, layer, *counted, advice, self.home))
        if self._overflows >= OVERFLOWS:
            raise TrainingError(
                f"training stopped at step {progress.step}",
                got=f"{self._overflows} overflows of half precision in a row",
                do=f"Use mixed_precision=no or bf16; {kept(self.home)}",
            )
