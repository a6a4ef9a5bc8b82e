"""The options of the loop, which are a part of the settings of an image run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from orthotune.image.families.family import LossOptions
from orthotune.image.families.noise_levels import OF_MODEL, NoiseLevels
from orthotune.runs.failed_save import OnFailedSave
from orthotune.runs.learning_rates import EQUAL, RateFactors

OptimizerName = Literal["adamw", "adamw-8bit", "adafactor", "prodigy", "schedule-free"]
Precision = Literal["no", "fp16", "bf16"]
PRECISIONS: tuple[Precision, ...] = ("no", "fp16", "bf16")


@dataclass(frozen=True)
class LoopOptions:
    """Options of :func:`orthotune.image.loop.loop.train`, named as the settings of a recipe.

    Args:
        learning_rate: the maximum of the schedule.
        steps: of the optimizer; each step reads ``gradient_accumulation`` batches of ``batch_size`` on every process.
        warmup: number of steps, or a fraction of all steps if below 1.
        ema: decay of the exponential moving average of the trained parameters, such as 0.999; 0 for no average.
        max_grad_norm: norm to which gradients are clipped; 0 does not clip.
        min_snr: see :class:`orthotune.image.families.family.LossOptions`.
        noise_offset: see :class:`orthotune.image.families.family.LossOptions`.
        levels: at which levels of noise the denoiser is trained.
        save_every: steps between checkpoints; None writes four over the run.
        keep_every: checkpoints at multiples of so many steps are written and stay.
        max_skipped: most skipped steps, with a non-finite loss or gradient, in the complete run.
        on_failed_save: whether a checkpoint that cannot be written stops the run.
        rate_factors: multiply the learning rate of magnitudes, and of blocks by their size.
        optimizer_options: further arguments of the optimizer.
        text_encoder_learning_rate: of the text encoders; None for ``learning_rate``.
        layer_rates: part of a layer's name -> factor of its learning rate; the first part that a name contains counts.
        hint_learning_rate: of the encoder of control images, which is not pretrained; None for ``learning_rate``.
    """

    learning_rate: float
    steps: int
    batch_size: int = 1
    gradient_accumulation: int = 1
    gradient_checkpointing: bool = False
    mixed_precision: Precision = "no"
    optimizer: OptimizerName = "adamw"
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    weight_decay: float = 0.0
    warmup: float = 0.0
    schedule: Literal["cosine", "linear", "constant"] = "constant"
    max_grad_norm: float = 1.0
    ema: float = 0.0
    min_snr: float | None = None
    noise_offset: float = 0.0
    levels: NoiseLevels = OF_MODEL
    seed: int = 0
    save_every: int | None = None
    save_total_limit: int = 2
    keep_every: int | None = None
    max_skipped: int = 10
    on_failed_save: OnFailedSave = "stop"
    trackers: tuple[str, ...] = ()
    rate_factors: RateFactors = EQUAL
    hint_learning_rate: float | None = None
    text_encoder_learning_rate: float | None = None
    layer_rates: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Any) -> LoopOptions:
        """The options in ``settings``, which has attributes of the same names."""
        values = {one.name: getattr(settings, one.name) for one in fields(cls) if hasattr(settings, one.name)}
        return cls(**values | {"trackers": tuple(values["trackers"])})

    @property
    def loss(self) -> LossOptions:
        """The options of the loss."""
        return LossOptions(min_snr_gamma=self.min_snr, noise_offset=self.noise_offset, levels=self.levels)
