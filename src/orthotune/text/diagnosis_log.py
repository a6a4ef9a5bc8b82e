"""Logs, while an adapter trains, what its rotations do: into the run's own metrics."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from orthotune.layers.base import OFTLayer
from orthotune.operations.diagnosis.diagnose import Diagnosis, diagnose
from orthotune.runs.clipping import before_clipping
from orthotune.runs.metrics_log import Line, MetricsLog
from orthotune.runs.sharded_model import is_sharded


class DiagnosisLog(TrainerCallback):
    """Adds ``diagnosis`` to the metrics of a step, as it is before the optimizer's.

    ``diagnosis`` holds ``angle_mean``, ``angle_max`` (radians), ``orthogonality_error``, ``dead``, ``saturation`` and
    ``gradient_norm`` over all layers, and ``advice``, the warnings. A warning is reported once, when it first appears.
    The norm is the one before clipping; in older records, whose lines have no ``gradient_norm`` of their own, it is
    the one after clipping.

    Args:
        log: where the lines go.
        every: steps between two lines.
        say: where warnings go; nowhere if None.
    """

    def __init__(self, log: MetricsLog, every: int, say: Any = None) -> None:
        self.log, self.every, self.say = log, every, say
        self.reported: set[str] = set()
        self._found: Line = {}
        self._moved = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **seen: Any
    ) -> None:
        self._moved = state.global_step > 0  # of the steps before a resumed one, most have a rate

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **seen: Any
    ) -> None:
        # The last moment at which gradients are there.
        model, step, moved = seen["model"], state.global_step + 1, self._moved
        self._moved = moved or any(group["lr"] > 0 for group in seen["optimizer"].param_groups)
        if (step % self.every and step < state.max_steps) or not state.is_world_process_zero:
            return
        if is_sharded(model):
            return  # one process alone cannot look at what is spread over several
        if not any(isinstance(m, OFTLayer) and any(m.rotations(n) for n in m.active_adapters) for m in model.modules()):
            return
        found = diagnose(model, weights=False)
        # At the start of training, and as long as the rate was 0, an adapter does nothing yet, and so it should.
        late = moved and step > self.every
        advice = [one for one in found.advice if late or "does nothing" not in one.warning]
        self._found = self._line(found) | {"advice": [str(one) for one in advice]}
        self.log.attach(step, {"diagnosis": self._found})
        for one in advice:
            if self.say is not None and one.warning.partition(":")[0] not in self.reported:
                self.reported.add(one.warning.partition(":")[0])
                self.say(f"Step {step}: {one}")

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **seen: Any) -> None:
        # The gradients that were there at the last moment were clipped already.
        found, self._found = self._found, {}
        if found:
            total = seen["logs"].get("grad_norm")
            found["gradient_norm"] = before_clipping(found["gradient_norm"], total, args.max_grad_norm)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **seen: Any) -> None:
        self.log.flush()

    @staticmethod
    def _line(found: Diagnosis) -> Line:
        rows, norms = found.rotations, [norm or 0.0 for norm in found.gradients.values()]
        planes = [row.blocks * (row.block_size // 2) for row in rows]
        balls = [row.saturation for row in rows if row.saturation is not None]
        mean = sum(row.angle_mean * count for row, count in zip(rows, planes, strict=True)) / max(1, sum(planes))
        return {
            "angle_mean": mean,
            "angle_max": max(row.angle_max for row in rows),
            "orthogonality_error": max(row.orthogonality_error for row in rows),
            "dead": sum(row.dead for row in rows) / len(rows),
            "saturation": sum(balls) / len(balls) if balls else None,
            "gradient_norm": sum(norm**2 for norm in norms) ** 0.5,
        }
