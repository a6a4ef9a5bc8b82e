"""The settings that all recipes for image models have."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from orthotune.image.data.caption_tags import Tags
from orthotune.image.data.masks import MaskSource
from orthotune.image.families.noise_levels import Distribution, NoiseLevels
from orthotune.image.loop.options import OptimizerName, Precision
from orthotune.recipes.method_settings import ONLY_FOR, MethodSettings, Positive, SettingError
from orthotune.runs.transform_options import BLOCKS

WORLD = "image-world"
#: The optimizer that estimates the learning rate itself.
ESTIMATING = "prodigy"

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
        "frames",
        "max_skipped",
        "on_failed_save",
        "rewind",
        "rewind_prompts",
        "made_for",
        "expert",
        "rest_encoders",
        "swap_blocks",
        "quantization",
        "adapter",
        "stop_when",
        "result",
        "base_config",
        "held_out",
        "keep_every",
        "optimizer_options",
        "text_encoder_learning_rate",
        "layer_rates",
        "timesteps",
        "timestep_mean",
        "timestep_std",
        "timestep_range",
        "flow_shift",
        "caption_dropout",
        "shuffle_tags",
        "keep_tags",
        "tag_dropout",
        "loss_masks",
        "unmasked",
    )
    only_for: ClassVar[dict[str, tuple[str, ...]]] = {
        **ONLY_FOR,
        "made_for": ("oft", "coft"),
        "swap_blocks": ("oft", "coft", "lora"),
        "quantization": ("oft", "coft", "lora"),
        "adapter": ("oft", "coft", "lora"),
    }

    model: str = Field(WORLD, description="Folder or hub name of a diffusers pipeline, a single file, or image-world.")
    base_config: Path | None = Field(
        None,
        description="Of a model that is a single .safetensors file: folder with model_index.json and the configs. "
        "Default: a folder of the file's name beside it.",
    )
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
    optimizer: OptimizerName = Field(
        "adamw",
        description="adamw-8bit needs bitsandbytes, prodigy prodigyopt (learning_rate is then 1, a factor), "
        "schedule-free schedulefree.",
    )
    optimizer_options: dict[str, Any] = Field({}, description="Further arguments of the optimizer, as {betas: [..]}.")
    text_encoder_learning_rate: float | None = Field(
        None, gt=0, description="Of adapted text encoders; default: learning_rate."
    )
    layer_rates: dict[str, float] = Field(
        {}, description="Factors of learning_rate by a part of a layer's name, as {up_blocks: 0.5, attn2: 2}."
    )
    timesteps: Distribution = Field(
        "model", description="Distribution of the noise levels: of the model, uniform, or logit-normal."
    )
    timestep_mean: float = Field(0.0, description="Of logit-normal; above 0 trains more at strong noise, on shapes.")
    timestep_std: float = Field(1.0, gt=0, description="Standard deviation of logit-normal.")
    timestep_range: tuple[float, float] = Field(
        (0.0, 1.0), description="Smallest and largest noise level, from 0, the image, to 1, pure noise."
    )
    flow_shift: float | None = Field(
        None, gt=0, description="Of flow matching, as 3; default: that of the model's scheduler."
    )
    max_grad_norm: float = Field(1.0, ge=0, description="Gradients are clipped to this norm; 0 does not clip.")
    ema: float = Field(
        0.0, ge=0, lt=1, description="Decay of a moving average of the trained parameters, as 0.999; 0 for none."
    )
    min_snr: float | None = Field(None, gt=0, description="Gamma of Min-SNR weighting, 5 as published.")
    noise_offset: float = Field(0.0, ge=0, description="0.1 lets a model learn dark and bright images.")

    resolution: Positive | None = Field(None, description="Side in pixels; default: that of the training of the model.")
    buckets: bool = Field(False, description="Keep the aspect ratios of images, in buckets of the same area.")
    frames: Positive = Field(
        1,
        description="Of a clip, for models of films: 1 plus a multiple of 4 or 8, as the model needs. 1: images.",
    )
    rest_encoders: bool = Field(
        False, description="Text encoders and VAE stay in main memory, except while they encode or draw."
    )
    quantization: Literal["nf4", "int8", "fp8"] | None = Field(
        None,
        description="Of the frozen linear layers in the blocks of the denoiser and of the text encoders: nf4 needs "
        "bitsandbytes, int8 and fp8 need torchao.",
    )
    swap_blocks: Positive | None = Field(
        None,
        description="So many frozen blocks of a transformer, as 20, stay in main memory and are fetched one ahead of "
        "their use; more than there are takes all. Needs gradient_checkpointing.",
    )
    cache: bool = Field(True, description="Encode images (and captions) once, before training.")

    caption_dropout: float = Field(
        0.0, ge=0, le=1, description="Share of captions that are replaced by the empty one, for guidance."
    )
    shuffle_tags: bool = Field(False, description="Captions are tags with commas; their order changes every epoch.")
    keep_tags: int = Field(0, ge=0, description="So many tags at the start stay, as the word for a subject.")
    tag_dropout: float = Field(0.0, ge=0, lt=1, description="Share of the other tags that are left away, by epoch.")
    loss_masks: MaskSource = Field(
        "none",
        description="Where the loss counts: alpha, where an image is opaque; files, where NAME.mask.png or "
        "NAME-masklabel.png beside it is light.",
    )
    unmasked: float = Field(0.0, ge=0, le=1, description="How much pixels outside of a mask count.")

    sample_prompts: list[str] = Field(
        [], description="Generated at step 0 and during training, always from the same noise."
    )
    sample_seeds: list[int] = Field([0, 1], min_length=1, description="Each prompt is generated from each seed.")
    sample_every: Positive | None = Field(None, description="Steps; default: four times over the run.")
    sample_steps: Positive = Field(20, description="Denoising steps of a sample.")
    guidance: float | None = Field(None, ge=0, description="Of the samples; default: that of the family.")
    held_out: float = Field(
        0, ge=0, description="Images of the data that are not trained on, or a share of them below 1: their loss at "
        "fixed noise is measured, and decides result and stop_when.",
    )  # fmt: skip
    eval_every: Positive | None = Field(
        None, description="Steps between measurements; default: before and after, with held_out five times."
    )
    keep_every: Positive | None = Field(
        None, description="Checkpoints at multiples of so many steps are kept, beside save_total_limit."
    )
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
    def _swaps(self) -> ImageSettings:
        if self.swap_blocks is not None and not self.gradient_checkpointing:
            fault = "swap_blocks needs gradient_checkpointing=true: otherwise every block stays until the backward"
            raise SettingError("swap_blocks", fault, "Add gradient_checkpointing=true")
        if self.swap_blocks is not None and self.quantization is not None:
            fault = "swap_blocks moves weights that are single tensors, and quantized ones are several"
            raise SettingError("swap_blocks", fault, "Leave swap_blocks or quantization out")
        return self

    @model_validator(mode="after")
    def _encodes_once(self) -> ImageSettings:
        if self.rest_encoders and (self.train_text_encoder or not self.cache):
            fault = "rest_encoders needs encodings that are kept, and frozen text encoders"
            raise SettingError("rest_encoders", fault, "Leave out cache=false and train_text_encoder=true")
        if self.rest_encoders and self.tags.vary:
            fault = "rest_encoders needs captions that are encoded once, and tags that vary are encoded at each step"
            raise SettingError("rest_encoders", fault, "Leave out shuffle_tags and tag_dropout, or rest_encoders")
        return self

    @model_validator(mode="after")
    def _measures_what_decides(self) -> ImageSettings:
        for key, asked in (("result", self.result == "best"), ("stop_when", bool(self.stop_when))):
            if asked and not self.held_out:
                fault = f"{key} needs a loss on images that are not trained on, and none are held out"
                raise SettingError(key, fault, "Add held_out=2, or a share as held_out=0.1")
        if self.held_out > 1 and self.held_out != int(self.held_out):
            fault = f"held_out={self.held_out:g} is neither a number of images nor a share of them"
            raise SettingError("held_out", fault, "Write for instance held_out=2 or held_out=0.1")
        if "forgetting" in self.stop_when and not getattr(self, "prior", False):
            fault = "stop_when.forgetting needs class images, whose loss measures it, and there are none"
            raise SettingError("stop_when.forgetting", fault, "Add class_prompt, or leave it out")
        return self

    @model_validator(mode="after")
    def _captions_and_masks(self) -> ImageSettings:
        if self.frames > 1 and self.loss_masks == "alpha":
            fault = "loss_masks=alpha reads the transparency of images, and clips are read without theirs"
            raise SettingError("loss_masks", fault, "Take loss_masks=files, one mask for all frames, or leave it out")
        if self.keep_tags and not self.tags.vary:
            fault = "keep_tags has no meaning for captions that do not vary"
            raise SettingError("keep_tags", fault, "Add shuffle_tags=true")
        if self.unmasked and self.loss_masks == "none":
            fault = "unmasked has no meaning without loss_masks"
            raise SettingError("unmasked", fault, "Add loss_masks=alpha or loss_masks=files")
        return self

    @classmethod
    def _filled(cls, values: dict[str, Any]) -> dict[str, Any]:
        if values.get("optimizer") == ESTIMATING:
            values = {"learning_rate": 1.0} | values
        return super()._filled(values)

    @model_validator(mode="after")
    def _rates_and_levels(self) -> ImageSettings:
        if self.text_encoder_learning_rate is not None and not self.train_text_encoder and self.adapter is None:
            fault = "text_encoder_learning_rate has no meaning for text encoders that are not adapted"
            raise SettingError("text_encoder_learning_rate", fault, "Add train_text_encoder=true")
        wrong = [part for part, factor in self.layer_rates.items() if not 0 < factor < float("inf")]
        if wrong:
            fault = f"layer_rates.{wrong[0]}={self.layer_rates[wrong[0]]:g} is no factor above 0"
            raise SettingError("layer_rates", fault, "Write for instance layer_rates={up_blocks: 0.5}")
        least, most = self.timestep_range
        if not 0 <= least < most <= 1:
            fault = f"timestep_range=[{least:g}, {most:g}] is no range inside 0..1"
            raise SettingError("timestep_range", fault, "Write for instance timestep_range=[0, 0.7]")
        for key, usual in (("timestep_mean", 0.0), ("timestep_std", 1.0)):
            if self.timesteps != "logit-normal" and getattr(self, key) != usual:
                fault = f"{key} has no meaning without timesteps=logit-normal"
                raise SettingError(key, fault, "Add timesteps=logit-normal, or leave it out")
        return self

    @property
    def levels(self) -> NoiseLevels:
        """At which levels of noise the denoiser is trained."""
        least, most = self.timestep_range
        return NoiseLevels(self.timesteps, self.timestep_mean, self.timestep_std, self.flow_shift, least, most)

    @property
    def tags(self) -> Tags:
        """How captions vary from epoch to epoch."""
        return Tags(self.shuffle_tags, self.keep_tags, self.tag_dropout)

    @model_validator(mode="after")
    def _continues(self) -> ImageSettings:
        adapter = type(self).model_fields["adapter"]
        if self.adapter is not None and not adapter.is_required() and self.train_text_encoder:
            fault = "an adapter that is trained further decides which text encoders are adapted"
            raise SettingError("train_text_encoder", fault, "Leave train_text_encoder out, or adapter")
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
