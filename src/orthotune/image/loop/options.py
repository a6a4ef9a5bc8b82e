"""How the loop trains: the part of an image run's settings that it needs."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from orthotune.image.families.family import LossOptions
from orthotune.runs.failed_save import OnFailedSave
from orthotune.runs.learning_rates import EQUAL, RateFactors

Precision = Literal["no", "fp16", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("no", "fp16", "bf16")


@dataclass(frozen=True)
class LoopOptions:
    """Options of :func:`orthotune.image.loop.loop.train`, named as the settings of a recipe.

    Args:
        learning_rate: the highest of the schedule.
        steps: of the optimizer; each reads ``gradient_accumulation`` batches of ``batch_size`` on every process.
        warmup: steps, or a part of all when below 1.
        ema: decay of the average of the trained parameters, such as 0.999; 0 keeps none.
        max_grad_norm: norm to which gradients are clipped; 0 leaves them.
        min_snr, noise_offset: see :class:`orthotune.image.families.family.LossOptions`.
        save_every: steps between checkpoints; None is four times over the run.
        max_skipped: steps with a loss or gradient that is not finite that may be skipped over the entire run.
        on_failed_save: whether a checkpoint that cannot be written ends the run, or is skipped.
        rate_factors: by how much the learning rates of single parameters differ.
        hint_learning_rate: of the control images' encoder, which starts from nothing; None is the same for all.
    """

    learning_rate: float
    steps: int
    batch_size: int = 1
    gradient_accumulation: int = 1
    gradient_checkpointing: bool = False
    mixed_precision: Precision = "no"
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    weight_decay: float = 0.0
    warmup: float = 0.0
    schedule: Literal["cosine", "linear", "constant"] = "constant"
    max_grad_norm: float = 1.0
    ema: float = 0.0
    min_snr: float | None = None
    noise_offset: float = 0.0
    seed: int = 0
    save_every: int | None = None
    save_total_limit: int = 2
    max_skipped: int = 10
    on_failed_save: OnFailedSave = "stop"
    trackers: tuple[str, ...] = ()
    rate_factors: RateFactors = EQUAL
    hint_learning_rate: float | None = None

    @classmethod
    def of(cls, settings: Any) -> LoopOptions:
        """Those of ``settings``, which has attributes of the same names."""
        values = {one.name: getattr(settings, one.name) for one in fields(cls) if hasattr(settings, one.name)}
        return cls(**values | {"trackers": tuple(values["trackers"])})

    @property
    def loss(self) -> LossOptions:
        """What the family's loss reads."""
        return LossOptions(min_snr_gamma=self.min_snr, noise_offset=self.noise_offset)
