"""Skipped steps of an image run: steps whose loss or gradient is not finite. Names the layer and counts them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from orthotune.errors import TrainingError
from orthotune.image.data.batch import Batch
from orthotune.image.loop.checkpoint import Progress
from orthotune.image.loop.generators import generator_for
from orthotune.image.loop.options import LoopOptions
from orthotune.image.loop.trainee import Trainee
from orthotune.runs.failed_save import kept
from orthotune.runs.nonfinite import Kind, first_bad_gradient, first_bad_output, skipped_message

#: Overflows in a row after which the gradient scaler has failed to find a scale. It begins with 2**16, which is
#: deliberately too large, and halves the scale at each overflow.
OVERFLOWS = 20


class SkippedSteps:
    """Finds the layer with the first non-finite value, counts skipped steps, and stops the run if there are too many.

    Args:
        trainee: the model.
        options: of the loop; ``max_skipped`` skipped steps are tolerated.
        checkpoints: the folder of checkpoints.
        say: gets a message about each skipped step.
        alone: whether this is the only process; with several, an additional forward in one of them would hang.
    """

    def __init__(
        self, trainee: Trainee, options: LoopOptions, checkpoints: Path, say: Callable[[str], None], alone: bool
    ) -> None:
        self.trainee, self.options, self.checkpoints, self.say, self.alone = trainee, options, checkpoints, say, alone
        self._bad: tuple[int, Batch] | None = None
        self._overflows = 0

    def look(self, loss: Tensor, number: int, batch: Batch) -> None:
        """Record the first micro-batch of a step with a non-finite loss.

        Args:
            loss: of the micro-batch.
            number: seeds the noise of the micro-batch, so that it can be repeated.
            batch: the micro-batch.
        """
        if self._bad is None and not bool(loss.isfinite()):
            self._bad = number, batch

    def layer(self, kind: Kind) -> str | None:
        """The layer with the first non-finite value. Call before gradients are clipped, which makes all of them NaN."""
        if self._bad is None or kind == "gradient" or not self.alone:
            return first_bad_gradient(self.trainee)
        number, batch = self._bad
        inputs: dict[str, Any] = {"batch": batch, "options": self.options.loss}
        return first_bad_output(self.trainee, inputs | {"generator": generator_for(self.options.seed, number)})

    def count(self, progress: Progress, kind: Kind | None, layer: str | None, overflow: bool) -> None:
        """Count the result of a step.

        Args:
            progress: of the run, updated in place.
            kind: which value was not finite; None for a normal step or an overflow in the gradient scaler.
            layer: from :meth:`layer`.
            overflow: whether the gradient norm is not finite.

        Raises:
            TrainingError: more than ``max_skipped`` skipped steps, or a gradient scaler that finds no scale. The
                message names the layer and the checkpoint that is kept.
        """
        self._bad = None
        self._overflows = self._overflows + 1 if overflow and kind is None else 0
        if kind is not None:
            progress.skipped += 1
            advice = "Lower learning_rate, or use mixed_precision=no or bf16"
            counted = (progress.skipped, self.options.max_skipped)
            self.say(skipped_message(progress.step, kind, layer, *counted, advice, self.checkpoints))
        if self._overflows >= OVERFLOWS:
            raise TrainingError(
                f"training stopped at step {progress.step}",
                got=f"{self._overflows} overflows of half precision in a row",
                do=f"Use mixed_precision=no or bf16; {kept(self.checkpoints)}",
            )
