"""The settings that every recipe for language models has."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from orthotune.files.installed_worlds import TEXT_WORLD
from orthotune.recipes import method_settings
from orthotune.recipes.method_settings import Method, MethodSettings, Positive, SettingError
from orthotune.runs.processes import Distributed

WORLD = TEXT_WORLD

# Rates for models of a billion parameters and more; presets know better for their family.
LEARNING_RATES: dict[str, float] = {"oft": 4e-4, "coft": 4e-4, "lora": 1e-4, "full": 2e-5}

# A trained block's skew matrix has a norm near 1 on the text world: this radius binds without freezing the adapter,
# which OFTConfig's (and PEFT's) 6e-5 all but does.
COFT_EPS = 1.0

#: Full finetuning has no adapter and no frozen base.
WITH_ADAPTER = ("oft", "coft", "lora")
ONLY_FOR: dict[str, tuple[str, ...]] = {
    **method_settings.ONLY_FOR,
    "target_modules": WITH_ADAPTER,
    "unmatched_targets": WITH_ADAPTER,
    "quantization": WITH_ADAPTER,
    "merge_aware": ("oft", "coft"),
}
Schedule = Literal[
    "cosine", "linear", "constant", "cosine_with_restarts", "cosine_with_min_lr", "polynomial", "inverse_sqrt",
    "warmup_stable_decay",
]  # fmt: skip
# COFT: DeepSpeed's optimizer has its own copy of the parameters, which a projection into the ball does not reach.
BY_ZERO: tuple[Method, ...] = ("oft", "lora")
MUTUALLY_EXCLUSIVE = (*method_settings.MUTUALLY_EXCLUSIVE, ("steps", "epochs"))


class TextSettings(MethodSettings):
    """What decides a run on a language model; a recipe's settings add its data.

    Without a model it is ``text-world``, the small model that comes with the package, and the preset of that name.
    """

    world: ClassVar[str] = WORLD
    rates: ClassVar[dict[str, float]] = LEARNING_RATES
    ball: ClassVar[float] = COFT_EPS
    only_for: ClassVar[dict[str, tuple[str, ...]]] = ONLY_FOR
    mutually_exclusive: ClassVar[tuple[tuple[str, str], ...]] = MUTUALLY_EXCLUSIVE
    newer: ClassVar[tuple[str, ...]] = (
        *method_settings.NEWER,
        "max_grad_norm",
        "eval_tokens",
        "stop_when",
        "result",
        "unmatched_targets",
        "adapter",
        "optim",
        "optim_options",
        "schedule_options",
        "neftune_noise_alpha",
        "attention",
        "liger",
        "trackers",
        "sample_prompts",
        "merge_aware",
    )

    model: str = Field(description="Path or hub name of a causal language model, text-world or smollm2.")
    attention: str | None = Field(
        None, description="Implementation: eager, sdpa, flash_attention_2, ... Default: the one that the model chooses."
    )
    target_modules: str | list[str] = Field(
        "all-linear", description="Names of the modules that are adapted, or one of PEFT's words or expressions."
    )
    unmatched_targets: Literal["refuse", "skip"] = Field(
        "refuse", description="Names in target_modules that no module of the model has."
    )

    steps: Positive | None = Field(None, description="Of the optimizer; with resume=auto they may be raised.")
    epochs: float | None = Field(None, gt=0, description="Default: 1, when steps is not given.")
    max_grad_norm: float = Field(1.0, ge=0, description="Gradients are clipped to this norm; 0 leaves them.")
    schedule: Schedule = Field(  # type: ignore[assignment]  # more than image recipes have
        "cosine", description="Of the learning rate, after the warmup; as in transformers."
    )
    schedule_options: dict[str, Any] = Field({}, description="Of the schedule, as {min_lr_rate: 0.1}.")
    optim: str | None = Field(
        None,
        description="As transformers names it: adamw_torch, adafactor, adamw_8bit, lion_8bit, ...; or muon, for lora "
        "and full: matrices by Muon, the rest by AdamW. Default: AdamW.",
    )
    optim_options: dict[str, Any] = Field({}, description="beta1, beta2 and epsilon of the Adam family.")
    neftune_noise_alpha: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="NEFTune: noise on the embeddings while training, as 5."
    )
    liger: bool = Field(False, description="Liger kernels, where liger-kernel and a GPU are there.")
    max_length: Annotated[int, Field(ge=2)] = Field(1024, description="Tokens per example or chunk.")
    quantization: str | None = Field(
        None,
        description="Of the base: nf4, fp4, int8 (bitsandbytes), torchao-int8, quanto-int8, -int4, -int2, -float8 "
        "while loading; gptq, awq, aqlm for a checkpoint that is stored so.",
    )
    merge_aware: bool = Field(
        False,
        description="With quantization: train through the rounding of a merge, so that the merged model is, bit for "
        "bit, what was evaluated; every step quantizes each adapted weight.",
    )
    distributed: Distributed = Field(
        "none",
        description="How several processes share a run: ddp, fsdp2, zero2 or zero3. batch_size is of all.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on a GPU, else float32.")
    eval_tokens: Positive | None = Field(
        None, description="Held-out tokens of each domain that are measured; default: all of them."
    )
    eval_every: Positive | None = Field(None, description="Steps; default: five times over the run.")
    trackers: list[str] = Field(
        [], description="wandb, tensorboard, trackio, mlflow, ..., besides metrics.jsonl; names of transformers."
    )
    sample_prompts: list[str] | None = Field(
        None,
        description="Prompts answered before and after training, for the report; [] for none. Default: a few.",
    )

    @field_validator("trackers", "sample_prompts", mode="before")
    @classmethod
    def _one_is_a_list(cls, given: Any) -> Any:
        return [given] if isinstance(given, str) else given

    @model_validator(mode="after")
    def _stops_and_merges(self) -> TextSettings:
        if self.merge_aware and (self.quantization is None or self.distributed != "none"):
            what = "no quantization" if self.quantization is None else f"distributed={self.distributed}"
            fault = f"merge_aware with {what} has no meaning: it is about quantized weights, of one process"
            raise SettingError("merge_aware", fault, "Add quantization=nf4, or leave merge_aware out")
        if self.result == "best" and self.distributed not in ("none", "ddp"):
            fault = (
                f"result=best keeps complete parameters, which distributed={self.distributed} spreads over processes"
            )
            raise SettingError("result", fault, "Choose distributed=ddp, or result=last")
        return self

    @model_validator(mode="after")
    def _fits_the_engine(self) -> TextSettings:
        if self.distributed.startswith("zero") and self.method not in BY_ZERO:
            fault = f"distributed={self.distributed} does not train method={self.method}"
            raise SettingError("distributed", fault, "Choose distributed=fsdp2 or ddp, or method=oft or lora")
        return self
