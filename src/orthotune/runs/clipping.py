"""The norm of the gradient before clipping, in a run's lines, and a warning where clipping acts at every step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from orthotune.runs.metrics_log import Line, MetricsLog

#: Clipped steps in a row that are no longer the large gradients of a start or of a few batches.
STRETCH = 50


class ClippingWatch:
    """Looks for a stretch of a run in which every step is clipped.

    Args:
        limit: ``max_grad_norm``; 0 or infinity clips nothing.
        lines: of the run until now, when it is resumed.

    Example:
        >>> ClippingWatch(1.0).see(1, 2.5) is None
        True
    """

    def __init__(self, limit: float, lines: Iterable[Line] = ()) -> None:
        self.limit, self.warned = limit, False
        self._norms: list[float] = []
        self._first = 0
        for line in lines:
            self.see(line["step"], line.get("gradient_norm"))
            self.warned = self.warned or "clipping" in line

    def see(self, step: int, norm: float | None) -> str | None:
        """The warning, when ``step`` is the one that completes a stretch for the first time.

        Steps that were skipped have no norm, and neither count nor begin a stretch anew.
        """
        if norm is None or not math.isfinite(norm) or not 0 < self.limit < math.inf:
            return None
        if norm <= self.limit:
            self._norms = []
            return None
        self._first = self._first if self._norms else step
        self._norms = [*self._norms[1 - STRETCH :], norm] if STRETCH > 1 else [norm]
        if self.warned or len(self._norms) < STRETCH:
            return None
        self.warned = True
        usual = 2 * median(self._norms)
        return (
            f"Clipping acted at all steps {self._first} to {step}: their gradients' norms, {min(self._norms):.3g} to "
            f"{max(self._norms):.3g}, were cut to max_grad_norm={self.limit:g}, so that large gradients weigh no more "
            f"than small ones. Set max_grad_norm={usual:.2g}, twice their median, to clip only what stands out, or "
            "max_grad_norm=0 to clip nothing; a run that diverges then needs a lower learning_rate."
        )


class GradientLog(TrainerCallback):
    """Adds ``gradient_norm``, over all that learns and before clipping, to the line of each step.

    ``clipping`` is in the line at which a stretch of clipped steps is complete: the warning.

    Args:
        log: where the lines go; its own callback writes them, after this one.
        say: called with the warning.
    """

    def __init__(self, log: MetricsLog, say: Any = None) -> None:
        self.log, self.say = log, say
        self.watch: ClippingWatch | None = None

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **seen: Any) -> None:
        logs = seen["logs"]
        if "grad_norm" not in logs or not state.is_world_process_zero:
            return
        if self.watch is None:
            self.watch = ClippingWatch(args.max_grad_norm, self.log.lines)
        line: Line = {"gradient_norm": logs["grad_norm"]}
        if warning := self.watch.see(state.global_step, line["gradient_norm"]):
            line["clipping"] = warning
            if self.say is not None:
                self.say(warning)
        self.log.attach(state.global_step, line)


def before_clipping(norm: float, total: float | None, limit: float) -> float:
    """The norm that a part of the gradient had, from its ``norm`` after clipping and the ``total`` one before.

    Example:
        >>> round(before_clipping(0.5, 4.0, 1.0), 3)
        2.0
    """
    if total is None or not math.isfinite(total) or not 0 < limit < math.inf:
        return norm
    return norm * max(1.0, (total + 1e-6) / limit)  # torch's own small number
