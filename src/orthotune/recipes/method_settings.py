"""The settings that every finetuning run has, of language and of image models: the method, its sizes, the schedule."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from orthotune.recipes import preset
from orthotune.runs.learning_rates import RateFactors

Method = Literal["oft", "coft", "lora", "full"]
METHODS: tuple[Method, ...] = ("oft", "coft", "lora", "full")
Positive = Annotated[int, Field(gt=0)]

# With lora, a block size still means something: the rank is chosen so that both train as many parameters.
ONLY_FOR: dict[str, tuple[str, ...]] = {
    "block_size": ("oft", "coft", "lora"),
    "r": ("oft", "coft", "lora"),
    "rotation": ("oft", "coft"),
    "magnitude_rate": ("oft", "coft"),
    "block_rate": ("oft", "coft"),
    "eps": ("coft",),
    "lora_rank": ("lora",),
    "lora_alpha": ("lora",),
    "lora": ("lora",),
}
# Settings that there are records from before.
NEWER = ("lora", "block_rate")
# Pairs that say the same thing twice.
RIVALS: tuple[tuple[str, str], ...] = (("block_size", "r"), ("lora_rank", "block_size"), ("lora_rank", "r"))

# A magnitude is a whole neuron's scale, a number of a generator one of many that turn it: at one rate magnitudes lag
# behind. On the text world a factor of 5 forgets less at equal gain than 1 and 15 (docs/evidence/choosing.md).
MAGNITUDE_RATE = 5.0


class SettingError(ValueError):
    """A setting that contradicts another one.

    Args:
        key: the setting to look at.
        said: the contradiction.
        do: the next step for the user.
        others: further contradictions that were found with this one.
    """

    def __init__(self, key: str, said: str, do: str, others: Sequence[SettingError] = ()) -> None:
        self.key, self.said, self.do, self.others = key, said, do, tuple(others)
        super().__init__(" ".join([f"{said}. {do}.", *map(str, others)]))


class MethodSettings(BaseModel):
    """What a run of any recipe is told. A preset fills in what was not given and applies to the method.

    A recipe's own settings say in class variables: ``recipe``, its name and the folder of its presets; ``world``, the
    embedded model that is also the preset when nothing else is said; ``rates``, a learning rate per method; ``ball``,
    COFT's eps; ``only_for`` and ``rivals``, which settings have no meaning for a method or beside each other;
    ``tied``, settings of a preset that are dropped when another one is said. ``newer`` are settings that a run's record
    leaves out at their default, because there are records from before they existed.
    """

    model_config = ConfigDict(extra="forbid", validate_default=True)

    recipe: ClassVar[str]
    world: ClassVar[str]
    rates: ClassVar[dict[str, float]]
    ball: ClassVar[float]
    only_for: ClassVar[dict[str, tuple[str, ...]]] = ONLY_FOR
    rivals: ClassVar[tuple[tuple[str, str], ...]] = RIVALS
    tied: ClassVar[dict[str, str]] = {}
    newer: ClassVar[tuple[str, ...]] = NEWER

    preset: str | None = Field(None, description="Fills in what is not given; `orthotune presets` lists them.")
    method: Method = "oft"
    block_size: Positive | None = Field(None, description="Side of a rotation block; 32 when nothing else is said.")
    r: Positive | None = Field(None, description="Number of rotation blocks per layer, instead of block_size.")
    eps: float | None = Field(None, gt=0, description="Freedom of COFT, a radius of eps / sqrt(blocks). Default: 1.")
    rotation: dict[str, Any] = Field({}, description="Further OFTConfig options, as side, magnitude or scaled.")
    magnitude_rate: float = Field(
        MAGNITUDE_RATE, gt=0, description="Learning rate of the scales of rotation.magnitude, as times learning_rate."
    )
    block_rate: float = Field(
        0.0, ge=0, le=2, description="Exponent p: blocks of size b learn at (32 / b)^p times learning_rate."
    )
    lora_rank: Positive | None = Field(None, description="Default: as many trainable parameters as OFT would have.")
    lora_alpha: float | None = Field(None, gt=0, description="Default: twice the rank.")
    lora: dict[str, Any] = Field({}, description="Further LoraConfig options, as use_dora or use_rslora.")

    learning_rate: float = Field(1e-4, gt=0, description="A number, or one per method.")
    batch_size: Positive = 8
    gradient_accumulation: Positive = 1
    gradient_checkpointing: bool = False
    warmup: float = Field(0.05, ge=0, description="Steps, or a fraction of them when below 1.")
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = Field(0.0, ge=0)
    seed: int = 0

    save_every: Positive | None = Field(None, description="Steps; default: four times over the run.")
    save_total_limit: Positive = 2
    max_skipped: Annotated[int, Field(ge=0)] = Field(
        10, description="Steps with a loss or gradient that is not finite, left out before the run gives up."
    )
    on_failed_save: Literal["stop", "go-on"] = Field(
        "stop", description="When a checkpoint cannot be written, as on a full disk; the one before is kept."
    )
    resume: str = Field("never", description="never, auto (newest checkpoint of the output), or a checkpoint's path.")
    output: Path = Path("runs")

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        said = {key: value for key, value in values.items() if value is not None}
        if "preset" not in said and said.get("model", cls.world) == cls.world:
            said["preset"] = cls.world
        if isinstance(said.get("preset"), str):
            said = cls._from_preset(said) | said
        method = said.get("method", "oft")
        if method == "coft":
            said.setdefault("eps", cls.ball)
        rates = said.get("learning_rate", {})
        if isinstance(rates, dict):
            known = {**cls.rates, **rates}
            said["learning_rate"] = known.get(str(method), cls.model_fields["learning_rate"].default)
        if isinstance(method, str):
            said.setdefault("output", Path("runs") / f"{cls.recipe}-{method}")
        return said

    @model_validator(mode="after")
    def _contradictions(self) -> MethodSettings:
        found: list[tuple[str, str, str]] = []
        for key, methods in self.only_for.items():
            if key in self.model_fields_set and self.method not in methods:
                said = f"{key} has no meaning for method={self.method}"
                choice = " or ".join(f"method={name}" for name in methods)
                found.append((key, said, f"Leave it out, or choose {choice}"))
        faulty = {key for key, _, _ in found}
        if "magnitude_rate" in self.model_fields_set - faulty and not self._has_magnitudes:
            said = "magnitude_rate has no meaning without rotation.magnitude"
            found.append(("magnitude_rate", said, "Add rotation.magnitude=true, or leave it out"))
        for one, other in self.rivals:
            if {one, other} <= self.model_fields_set:
                found.append((other, f"{one} and {other} say the same thing twice", f"Keep {one} or {other}"))
        if found:
            raise SettingError(*found[0], others=[SettingError(*one) for one in found[1:]])
        return self

    @property
    def rate_factors(self) -> RateFactors:
        """By how much the learning rates of magnitudes, and of blocks of other sizes than 32, differ."""
        exponent = self.block_rate if self.method in ("oft", "coft") else 0.0
        return RateFactors(self.magnitude_factor, exponent)

    @property
    def magnitude_factor(self) -> float:
        """How many times the learning rate magnitudes learn at, where they learn beside a rotation."""
        return self.magnitude_rate if self._has_magnitudes else 1.0

    @property
    def _has_magnitudes(self) -> bool:
        own = self.rotation.get("layer_settings") or {}
        return any(said.get("magnitude") for said in (self.rotation, *own.values()) if isinstance(said, dict))

    def record(self) -> dict[str, Any]:
        """What decides this run, in JSON types: without what was left open or has no meaning for the method."""
        beside = {key for key, methods in self.only_for.items() if self.method not in methods}
        # A run that was started before a setting existed had its default, and can be resumed.
        if not self._has_magnitudes:
            beside.add("magnitude_rate")
        beside |= {key for key in self.newer if getattr(self, key) == type(self).model_fields[key].default}
        return self.model_dump(mode="json", exclude=beside, exclude_none=True)

    @classmethod
    def _from_preset(cls, said: dict[str, Any]) -> dict[str, Any]:
        """The settings of the preset that neither contradict what was said nor belong to another method."""
        filled = preset.settings_of(said["preset"], cls.recipe)
        method = said.get("method", "oft")
        beside = {key for key, other in cls.tied.items() if other in said}
        beside |= {other for pair in cls.rivals for other in pair if said.keys() & set(pair)}
        beside |= {key for key, methods in cls.only_for.items() if method not in methods}
        return {key: value for key, value in filled.items() if key not in beside}
