"""The settings that every recipe for image models has."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from orthotune.image.loop.options import Precision
from orthotune.recipes.method_settings import MethodSettings, Positive

WORLD = "image-world"

# Of published recipes for models of Stable Diffusion's size: OFT's subjects (arXiv 2306.07280), diffusers' LoRA and
# DreamBooth. Presets know better for their family.
LEARNING_RATES: dict[str, float] = {"oft": 6e-5, "coft": 6e-5, "lora": 1e-4, "full": 5e-6}

# As for language models: a ball that binds without holding still.
COFT_EPS = 1.0


class ImageSettings(MethodSettings):
    """What decides a run on an image model; a recipe's settings add its data.

    Without a model it is ``image-world``, the small pipeline that comes with the package, and the preset of that name.
    """

    world: ClassVar[str] = WORLD
    rates: ClassVar[dict[str, float]] = LEARNING_RATES
    ball: ClassVar[float] = COFT_EPS
    newer: ClassVar[tuple[str, ...]] = (*MethodSettings.newer, "max_skipped", "on_failed_save")

    model: str = Field(WORLD, description="Folder or hub name of a diffusers pipeline, or image-world.")
    target_modules: str | list[str] = Field("attention", description="attention, attention+convolutions, or names.")
    train_text_encoder: bool = False

    steps: Positive = Field(1000, description="Of the optimizer.")
    batch_size: Positive = 4
    mixed_precision: Precision = Field("no", description="no, fp16 or bf16; what is trained stays float32.")
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    max_grad_norm: float = Field(1.0, ge=0, description="Gradients are clipped to this norm; 0 leaves them.")
    ema: float = Field(0.0, ge=0, lt=1, description="Decay of an average of what is trained, as 0.999; 0 keeps none.")
    min_snr: float | None = Field(None, gt=0, description="Gamma of Min-SNR weighting, 5 as published.")
    noise_offset: float = Field(0.0, ge=0, description="0.1 lets a model learn dark and bright pictures.")

    resolution: Positive | None = Field(None, description="Side in pixels; default: what the model was made for.")
    buckets: bool = Field(False, description="Keep the pictures' aspect ratios, in buckets of one area.")
    cache: bool = Field(True, description="Encode pictures (and captions) once, before training.")

    sample_prompts: list[str] = Field([], description="Drawn at step 0 and while training, always from the same noise.")
    sample_seeds: list[int] = Field([0, 1], min_length=1, description="Each prompt is drawn from each of them.")
    sample_every: Positive | None = Field(None, description="Steps; default: four times over the run.")
    sample_steps: Positive = 20
    guidance: float | None = Field(None, ge=0, description="Of the samples; default: the model's usual one.")
    eval_every: Positive | None = Field(None, description="Steps between scores; default: before and after only.")
    trackers: list[str] = Field([], description="tensorboard, wandb; besides metrics.jsonl.")
