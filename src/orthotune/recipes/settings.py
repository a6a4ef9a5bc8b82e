"""The settings of one supervised finetuning run, checked when they are made."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from orthotune.recipes import method_settings
from orthotune.recipes.method_settings import METHODS, Method, MethodSettings, Positive, SettingError
from orthotune.runs.processes import Distributed

__all__ = ["LEARNING_RATES", "METHODS", "ONLY_FOR", "RIVALS", "WORLD", "Method", "SFTSettings", "SettingError"]

WORLD = "text-world"
#: word for old texts that the base model writes by itself
GENERATED = "generated"

# Rates for models of a billion parameters and more; presets know better for their family.
LEARNING_RATES: dict[str, float] = {"oft": 4e-4, "coft": 4e-4, "lora": 1e-4, "full": 2e-5}

# A trained block's skew matrix has a norm near 1 on the text world: this binds without holding still, which OFTConfig's
# (and PEFT's) 6e-5 all but does.
COFT_EPS = 1.0

ONLY_FOR: dict[str, tuple[str, ...]] = {
    **method_settings.ONLY_FOR,
    "target_modules": ("oft", "coft", "lora"),
    "quantization": ("oft", "coft", "lora"),
    # Full finetuning has no frozen base beside it.
    "keep": ("oft", "coft", "lora"),
    "keep_data": ("oft", "coft", "lora"),
    "keep_batch": ("oft", "coft", "lora"),
}
# COFT: DeepSpeed's optimizer has its own copy of the parameters, which a projection into the ball does not reach.
BY_ZERO: tuple[Method, ...] = ("oft", "lora")
RIVALS = (*method_settings.RIVALS, ("steps", "epochs"))


class SFTSettings(MethodSettings):
    """Everything that decides a supervised finetuning run.

    A preset fills in what was not given and applies to the method. Without a model, the preset is ``text-world``:
    the small model and texts that come with the package.

    Example:
        >>> SFTSettings(method="lora").learning_rate
        0.002
    """

    recipe: ClassVar[str] = "sft"
    world: ClassVar[str] = WORLD
    rates: ClassVar[dict[str, float]] = LEARNING_RATES
    ball: ClassVar[float] = COFT_EPS
    only_for: ClassVar[dict[str, tuple[str, ...]]] = ONLY_FOR
    rivals: ClassVar[tuple[tuple[str, str], ...]] = RIVALS
    # Held-out data belongs to the data that it was held out from.
    tied: ClassVar[dict[str, str]] = {"eval_data": "data"}
    newer: ClassVar[tuple[str, ...]] = ("lora", "keep", "max_grad_norm", "eval_tokens")

    model: str = Field(description="Path or hub name of a causal language model, or text-world.")
    data: str = Field(description="File, directory, hub name or text-world/SPLIT to learn from.")
    data_format: Literal["auto", "text", "prompt-completion", "messages"] = "auto"
    eval_data: str | None = Field(None, description="Held-out data of the new domain; default: a part of `data`.")
    old_data: str | None = Field(
        None, description="Data of the old domain, to measure what is forgotten; none. Default: some Python sources."
    )
    keep: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        0, description="Weight of a penalty on changed outputs on old texts: mean KL(base || adapted), nats per token."
    )
    keep_data: str | None = Field(
        None,
        description="Old texts for keep, as old_data; or generated: texts that the base writes. Default: generated, "
        "for text-world its old_train.",
    )
    keep_batch: Positive | None = Field(None, description="Rows of keep_data beside each batch; default: half of it.")
    target_modules: str | list[str] = "all-linear"

    steps: Positive | None = None
    epochs: float | None = Field(None, gt=0, description="Default: 1, when steps is not given.")
    max_grad_norm: float = Field(1.0, ge=0, description="Gradients are clipped to this norm; 0 leaves them.")
    max_length: Annotated[int, Field(ge=2)] = Field(1024, description="Tokens per example or chunk.")
    packing: Literal["auto", "none", "wrapped", "bfd_split"] = Field(
        "auto", description="auto: running text is wrapped (nothing is cut off), dialogues stay one per row."
    )
    quantization: str | None = Field(
        None,
        description="Of the base: nf4, fp4, int8 (bitsandbytes), torchao-int8, quanto-int8, -int4, -int2, -float8 "
        "while loading; gptq, awq, aqlm for a checkpoint that is stored so.",
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

    @classmethod
    def _from_preset(cls, said: dict[str, Any]) -> dict[str, Any]:
        filled = super()._from_preset(said)
        if said.get("keep") == 0:  # the rest of what a preset keeps has no meaning then
            filled = {key: value for key, value in filled.items() if key not in ("keep_data", "keep_batch")}
        return filled

    @model_validator(mode="after")
    def _keeps(self) -> SFTSettings:
        if not self.keep:
            for key in ("keep_data", "keep_batch"):
                if getattr(self, key) is not None:
                    raise SettingError(key, f"{key} has no meaning without keep", f"Add keep=1, or leave {key} out")
            return self
        options = "lora" if self.method == "lora" else "rotation"
        if (bias := getattr(self, options).get("bias", "none")) != "none":
            said = f"keep compares with the base, of which {options}.bias={bias} trains a part"
            raise SettingError("keep", said, "Leave out one of them")
        if self.keep_data is None:
            self.keep_data = f"{WORLD}/old_train" if self.model == WORLD else GENERATED
        if self.keep_batch is None:
            self.keep_batch = max(1, self.batch_size // 2)
        self._keeps_in_engine()
        return self

    def _keeps_in_engine(self) -> None:
        if self.distributed.startswith("zero"):
            said = f"keep needs two forwards for one backward, which distributed={self.distributed} is not run with"
            raise SettingError("keep", said, "Choose distributed=ddp or fsdp2")
        if self.distributed == "fsdp2" and self.keep_data == GENERATED:
            said = "keep_data=generated needs a whole base in one process, which distributed=fsdp2 does not have"
            raise SettingError("keep_data", said, "Name texts, as the keep-texts.jsonl of a run of one process")

    @model_validator(mode="after")
    def _fits_the_engine(self) -> SFTSettings:
        if self.distributed.startswith("zero") and self.method not in BY_ZERO:
            said = f"distributed={self.distributed} does not train method={self.method}"
            raise SettingError("distributed", said, "Choose distributed=fsdp2 or ddp, or method=oft or lora")
        return self
