"""The settings of one supervised finetuning run, checked when they are made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from orthotune.recipes import preset

Method = Literal["oft", "coft", "lora", "full"]
METHODS: tuple[Method, ...] = ("oft", "coft", "lora", "full")
WORLD = "text-world"

# Rates for models of a billion parameters and more; presets know better for their family.
LEARNING_RATES: dict[str, float] = {"oft": 4e-4, "coft": 4e-4, "lora": 1e-4, "full": 2e-5}

# A trained block's skew matrix has a norm near 1 on the text world: this binds without holding still, which OFTConfig's
# (and PEFT's) 6e-5 all but does.
COFT_EPS = 1.0

# With lora, a block size still means something: the rank is chosen so that both train as many parameters.
ONLY_FOR: dict[str, tuple[str, ...]] = {
    "block_size": ("oft", "coft", "lora"),
    "r": ("oft", "coft", "lora"),
    "target_modules": ("oft", "coft", "lora"),
    "rotation": ("oft", "coft"),
    "eps": ("coft",),
    "lora_rank": ("lora",),
    "lora_alpha": ("lora",),
    "quantization": ("oft", "coft", "lora"),
}
# Pairs that say the same thing twice.
RIVALS = (("block_size", "r"), ("steps", "epochs"), ("lora_rank", "block_size"), ("lora_rank", "r"))

Positive = Annotated[int, Field(gt=0)]


class SettingError(ValueError):
    """A setting that contradicts another one; ``key`` is the setting to look at."""

    def __init__(self, key: str, said: str, do: str) -> None:
        self.key, self.said, self.do = key, said, do
        super().__init__(f"{said}. {do}.")


class SFTSettings(BaseModel):
    """Everything that decides a supervised finetuning run.

    A preset fills in what was not given and applies to the method. Without a model, the preset is ``text-world``:
    the small model and texts that come with the package.

    Example:
        >>> SFTSettings(method="lora").learning_rate
        0.002
    """

    model_config = ConfigDict(extra="forbid", validate_default=True)

    preset: str | None = Field(None, description="Fills in what is not given; `orthotune presets` lists them.")
    model: str = Field(description="Path or hub name of a causal language model, or text-world.")
    data: str = Field(description="File, directory, hub name or text-world/SPLIT to learn from.")
    data_format: Literal["auto", "text", "prompt-completion", "messages"] = "auto"
    eval_data: str | None = Field(None, description="Held-out data of the new domain; default: a part of `data`.")
    old_data: str | None = Field(None, description="Data of the old domain, to measure what is forgotten.")

    method: Method = "oft"
    block_size: Positive | None = Field(None, description="Side of a rotation block; 32 when nothing else is said.")
    r: Positive | None = Field(None, description="Number of rotation blocks per layer, instead of block_size.")
    eps: float | None = Field(None, gt=0, description="Freedom of COFT, a radius of eps / sqrt(blocks). Default: 1.")
    rotation: dict[str, Any] = Field({}, description="Further OFTConfig options, as side, magnitude or scaled.")
    lora_rank: Positive | None = Field(None, description="Default: as many trainable parameters as OFT would have.")
    lora_alpha: float | None = Field(None, gt=0, description="Default: twice the rank.")
    target_modules: str | list[str] = "all-linear"

    learning_rate: float = Field(
        default_factory=lambda said: LEARNING_RATES.get(said.get("method", "oft"), 1e-4),
        gt=0,
        description="A number, or one per method.",
    )
    steps: Positive | None = None
    epochs: float | None = Field(None, gt=0, description="Default: 1, when steps is not given.")
    batch_size: Positive = 8
    gradient_accumulation: Positive = 1
    max_length: Annotated[int, Field(ge=2)] = Field(1024, description="Tokens per example or chunk.")
    packing: Literal["auto", "none", "wrapped", "bfd_split"] = Field(
        "auto", description="auto: running text is wrapped (nothing is cut off), dialogues stay one per row."
    )
    warmup: float = Field(0.05, ge=0, description="Steps, or a fraction of them when below 1.")
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = Field(0.0, ge=0)
    seed: int = 0
    quantization: str | None = Field(
        None,
        description="Of the base: nf4, fp4, int8 (bitsandbytes), torchao-int8, quanto-int8, -int4, -int2, -float8 "
        "while loading; gptq, awq, aqlm for a checkpoint that is stored so.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on a GPU, else float32.")
    gradient_checkpointing: bool = False

    eval_every: Positive | None = Field(None, description="Steps; default: five times over the run.")
    save_every: Positive | None = Field(None, description="Steps; default: four times over the run.")
    save_total_limit: Positive = 2
    resume: str = Field("never", description="never, auto (newest checkpoint of the output), or a checkpoint's path.")
    output: Path = Field(default_factory=lambda said: Path("runs") / f"sft-{said.get('method', 'oft')}")

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        said = {key: value for key, value in values.items() if value is not None}
        if "preset" not in said and said.get("model", WORLD) == WORLD:
            said["preset"] = WORLD
        if isinstance(said.get("preset"), str):
            said = _from_preset(said) | said
        method = said.get("method", "oft")
        if method == "coft":
            said.setdefault("eps", COFT_EPS)
        if isinstance(said.get("learning_rate"), dict):
            rates = said.pop("learning_rate")
            said |= {"learning_rate": rates[method]} if method in rates else {}
        return said

    @model_validator(mode="after")
    def _contradictions(self) -> SFTSettings:
        for key, methods in ONLY_FOR.items():
            if key in self.model_fields_set and self.method not in methods:
                raise SettingError(
                    key,
                    f"{key} has no meaning for method={self.method}",
                    f"Leave it out, or choose {' or '.join(f'method={name}' for name in methods)}",
                )
        for one, other in RIVALS:
            if {one, other} <= self.model_fields_set:
                raise SettingError(other, f"{one} and {other} say the same thing twice", f"Keep {one} or {other}")
        return self

    def record(self) -> dict[str, Any]:
        """What decides this run, in JSON types: without what was left open or has no meaning for the method."""
        beside = {key for key, methods in ONLY_FOR.items() if self.method not in methods}
        return self.model_dump(mode="json", exclude=beside, exclude_none=True)


def _from_preset(said: dict[str, Any]) -> dict[str, Any]:
    """The settings of the preset that neither contradict what was said nor belong to another method."""
    filled = preset.settings_of(said["preset"])
    method = said.get("method", "oft")
    # Held-out data belongs to the data that it was held out from.
    beside = {"eval_data"} if "data" in said else set()
    beside |= {other for pair in RIVALS for other in pair if said.keys() & pair}
    beside |= {key for key, methods in ONLY_FOR.items() if method not in methods}
    return {key: value for key, value in filled.items() if key not in beside}
