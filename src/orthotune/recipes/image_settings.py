"""The settings that all recipes for image models have."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from orthotune.image.loop.options import Precision
from orthotune.recipes.method_settings import ONLY_FOR, MethodSettings, Positive, SettingError
from orthotune.runs.transform_options import BLOCKS

WORLD = "image-world"

#: value of for -> the options of rotations that its files need. ComfyUI and LyCORIS rotate outputs; OneTrainer and the
#: ComfyUI-OFTv2 node compute PEFT's Neumann series of five terms, so that with it nothing changes in a conversion.
MADE_FOR: dict[str, dict[str, Any]] = {
    "comfyui": {"side": "out"},
    "peft": {"side": "in"},
    "onetrainer": {"side": "in", "use_cayley_neumann": True},
}

# From published recipes for models of the size of Stable Diffusion: the paper on OFT (arXiv 2306.07280), and the LoRA
# and DreamBooth examples of diffusers. Presets have better values for their family.
LEARNING_RATES: dict[str, float] = {"oft": 6e-5, "coft": 6e-5, "lora": 1e-4, "full": 5e-6}

# As for language models: a radius that constrains the rotation without freezing it.
COFT_EPS = 1.0


class ImageSettings(MethodSettings):
    """The settings of a run on an image model; the settings of a recipe add its data.

    Without a model, the run uses ``image-world``, the small built-in pipeline, and the preset of that name.
    """

    world: ClassVar[str] = WORLD
    rates: ClassVar[dict[str, float]] = LEARNING_RATES
    ball: ClassVar[float] = COFT_EPS
    newer: ClassVar[tuple[str, ...]] = (
        *MethodSettings.newer,
        "max_skipped",
        "on_failed_save",
        "rewind",
        "rewind_prompts",
        "made_for",
        "expert",
        "rest_encoders",
    )
    only_for: ClassVar[dict[str, tuple[str, ...]]] = {**ONLY_FOR, "made_for": ("oft", "coft")}

    model: str = Field(WORLD, description="Folder or hub name of a diffusers pipeline, or image-world.")
    target_modules: str | list[str] = Field("attention", description="attention, attention+convolutions, or names.")
    expert: Literal["high-noise", "low-noise"] | None = Field(
        None, description="Which of the two denoisers of Wan 2.2 is trained; default: high-noise."
    )
    train_text_encoder: bool = Field(False, description="Adapt the text encoders, too.")
    made_for: Literal["comfyui", "peft", "onetrainer"] | None = Field(
        None, description="Written for=comfyui, peft or onetrainer: where the file goes, which decides what is rotated."
    )

    steps: Positive = Field(1000, description="Of the optimizer.")
    batch_size: Positive = Field(4, description="Images of a batch, of all processes together.")
    mixed_precision: Precision = Field("no", description="no, fp16 or bf16; trained parameters stay float32.")
    optimizer: Literal["adamw", "adamw-8bit"] = Field("adamw", description="adamw-8bit needs bitsandbytes.")
    max_grad_norm: float = Field(1.0, ge=0, description="Gradients are clipped to this norm; 0 does not clip.")
    ema: float = Field(
        0.0, ge=0, lt=1, description="Decay of a moving average of the trained parameters, as 0.999; 0 for none."
    )
    min_snr: float | None = Field(None, gt=0, description="Gamma of Min-SNR weighting, 5 as published.")
    noise_offset: float = Field(0.0, ge=0, description="0.1 lets a model learn dark and bright images.")

    resolution: Positive | None = Field(None, description="Side in pixels; default: that of the training of the model.")
    buckets: bool = Field(False, description="Keep the aspect ratios of images, in buckets of the same area.")
    rest_encoders: bool = Field(
        False, description="Text encoders and VAE stay in main memory, except while they encode or draw."
    )
    cache: bool = Field(True, description="Encode images (and captions) once, before training.")

    sample_prompts: list[str] = Field(
        [], description="Generated at step 0 and during training, always from the same noise."
    )
    sample_seeds: list[int] = Field([0, 1], min_length=1, description="Each prompt is generated from each seed.")
    sample_every: Positive | None = Field(None, description="Steps; default: four times over the run.")
    sample_steps: Positive = Field(20, description="Denoising steps of a sample.")
    guidance: float | None = Field(None, ge=0, description="Of the samples; default: that of the family.")
    eval_every: Positive | None = Field(None, description="Steps between scores; default: before and after only.")
    rewind: Literal["none", "auto", "kind", "projection", "depth", "layer"] = Field(
        "none",
        description="Choose strengths for the finished adapter, as `orthotune rewind`: auto, one for all layers, or "
        "one by kind, projection, depth or layer.",
    )
    rewind_prompts: Path | None = Field(
        None,
        description="Text file with one prompt per line, not about the task, for rewind: the base generates images of "
        "these. Default: class images, or prompts of image-world.",
    )
    trackers: list[str] = Field([], description="tensorboard, wandb; besides metrics.jsonl.")

    @model_validator(mode="after")
    def _rewinds(self) -> ImageSettings:
        if self.rewind == "none" and self.rewind_prompts is not None:
            raise SettingError("rewind_prompts", "rewind_prompts has no meaning without rewind", "Add rewind=auto")
        known = self.model == WORLD or self.rewind_prompts is not None or getattr(self, "prior", False)
        if self.rewind != "none" and not known:
            fault = "rewind needs images of the base, and there are no prompts for these"
            raise SettingError("rewind", fault, "Add rewind_prompts=FILE with one prompt per line, not about the task")
        return self

    @model_validator(mode="after")
    def _encodes_once(self) -> ImageSettings:
        if self.rest_encoders and (self.train_text_encoder or not self.cache):
            fault = "rest_encoders needs encodings that are kept, and frozen text encoders"
            raise SettingError("rest_encoders", fault, "Leave out cache=false and train_text_encoder=true")
        return self

    @model_validator(mode="before")
    @classmethod
    def _for(cls, values: Any) -> Any:
        """``for``, as users write it, is a word of Python."""
        if isinstance(values, dict) and "for" in values:
            return {key: value for key, value in values.items() if key != "for"} | {"made_for": values["for"]}
        return values

    @model_validator(mode="after")
    def _rotates_as_the_tool_reads(self) -> ImageSettings:
        if self.made_for is None or self.method not in ("oft", "coft"):
            return self
        if self.transform not in BLOCKS:
            fault = f"for={self.made_for} is about files of blocks, and transform={self.transform} is another transform"
            raise SettingError("made_for", fault, "Leave for out; `orthotune convert` writes files of some transforms")
        for key, value in MADE_FOR[self.made_for].items():
            given = self.rotation.get(key, value)
            if given != value:
                fault = f"rotation.{key}={given} and for={self.made_for} contradict each other"
                raise SettingError(f"rotation.{key}", fault, f"Leave one of them out; {self.made_for} needs {value}")
        self.rotation = MADE_FOR[self.made_for] | self.rotation
        return self

    @model_validator(mode="after")
    def _channels_of_inputs(self) -> ImageSettings:
        if self.rotation.get("conv") == "channels" and self.rotation.get("side") == "out":
            fault = "rotation.conv=channels rotates the input's channels of a convolution, and outputs are rotated here"
            raise SettingError("rotation.conv", fault, "Leave rotation.conv out, or rotate inputs (rotation.side=in)")
        return self
