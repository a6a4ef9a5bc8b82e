"""Steps of a trainer that are skipped because their loss or gradient is not finite: found, named and counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from orthotune.runs import nonfinite
from orthotune.runs.processes import largest

ADVICE = "Train with a lower learning rate, or in float32 or bfloat16"


class NonFiniteSteps:
    """Skips steps that are not finite. An overflow that the scaler of float16 training meets is not counted: the scaler
    lowers its scale and goes on by itself.

    Args:
        max_skipped: steps that may be skipped over the entire run.
        say: called with a message for each of them.
    """

    def __init__(self, max_skipped: int, say: Callable[[str], None]) -> None:
        self.max_skipped, self.say = max_skipped, say
        self.skipped: list[dict[str, Any]] = []
        self._bad: dict[str, Any] | None = None

    def after_batch(self, trainer: Any, model: nn.Module, loss: Tensor, batch: dict[str, Any] | None) -> None:
        """Look at a batch whose gradients have been computed; after the last one of a step, skip the step if need be.

        Args:
            trainer: of the step.
            model: with the gradients.
            loss: of the batch.
            batch: what the loss was computed from, where known.

        Raises:
            TrainingError: more than ``max_skipped`` steps; names the layer and the checkpoint that is kept.
        """
        if not bool(loss.isfinite().all()):
            self._bad = batch or {}
        if not trainer.accelerator.sync_gradients:
            return
        bad, self._bad = self._bad, None
        # Scaled gradients overflow regularly: the scaler skips the step and lowers its scale.
        scaled = trainer.accelerator.scaler is not None
        # All processes skip a step, or none.
        if largest(int(bad is not None or not (scaled or nonfinite.gradients_are_finite(model)))):
            self._skip(trainer, model, bad, scaled)

    def unmeasured(self, step: int) -> dict[str, None]:
        """The entries of the log that ``step`` has no number for.

        A step that was skipped has no gradient and no norm, and the trainer would write the mean of losses before in
        the place of one that is not finite.
        """
        last = self.skipped[-1] if self.skipped else {}
        if last.get("step") != step:
            return {}
        return {"grad_norm": None} | ({"loss": None} if last["kind"] == "loss" else {})

    def _skip(self, trainer: Any, model: nn.Module, bad: dict[str, Any] | None, scaled: bool) -> None:
        kind: nonfinite.Kind = "gradient" if bad is None else "loss"
        layer = _first_layer(trainer, model, bad)
        if not scaled:
            # The optimizer passes over parameters without a gradient: no moment, no decay, no change.
            model.zero_grad(set_to_none=True)
        step = trainer.state.global_step + 1
        self.skipped.append({"step": step, "kind": kind, "layer": layer})
        counts = (len(self.skipped), self.max_skipped)
        self.say(nonfinite.skipped_message(step, kind, layer, *counts, ADVICE, Path(trainer.args.output_dir)))


def _first_layer(trainer: Any, model: Any, bad: dict[str, Any] | None) -> str | None:
    """Where the step went wrong: the first output in another forward of the batch, or the last gradient."""
    if bad is None or trainer.accelerator.num_processes > 1:  # a forward of one process would wait for the others
        return nonfinite.first_bad_gradient(model)
    if getattr(model, "main_input_name", "input_ids") in bad:
        return nonfinite.first_bad_output(model, bad)
    # Batches that only the trainer can bring before its model, as prompts with what was generated.
    return nonfinite.first_bad_output(model, {"model": model, "inputs": bad}, trainer.loss_again)
