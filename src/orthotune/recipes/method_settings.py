"""The settings that all finetuning runs have, of language and image models: method, sizes, schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from orthotune.recipes import preset
from orthotune.recipes.continued import DECIDED, decided_by
from orthotune.recipes.stop_when import rule_faults
from orthotune.rotation.family_registry import PUBLISHED
from orthotune.runs.learning_rates import REFERENCE, RateFactors
from orthotune.runs.transform_options import BLOCKS, rewinding_fault, transform_fault, transform_options

Method = Literal["oft", "coft", "lora", "full"]
METHODS: tuple[Method, ...] = ("oft", "coft", "lora", "full")
#: names of transforms here, and of their publications
Transform = Literal[
    "blocks", "reflections", "butterfly", "planes", "givens", "subspace", "hyperplane", "oft", "hra", "boft", "road",
    "goft", "psoft", "ether", "ether+",
]  # fmt: skip
Positive = Annotated[int, Field(gt=0)]

# With lora, the transform and its sizes select the rank: both methods then train about as many parameters.
ONLY_FOR: dict[str, tuple[str, ...]] = {
    "block_size": ("oft", "coft", "lora"),
    "r": ("oft", "coft", "lora"),
    "transform": ("oft", "lora"),
    "variant": ("oft", "lora"),
    "factors": ("oft", "lora"),
    "rotation": ("oft", "coft"),
    "magnitude_rate": ("oft", "coft"),
    "block_rate": ("oft", "coft"),
    "eps": ("coft",),
    "lora_rank": ("lora",),
    "lora_alpha": ("lora",),
    "lora": ("lora",),
}
# Added after the first release: not written to run.json at their default, so that older runs can be resumed.
NEWER = ("lora", "block_rate", "transform", "variant", "factors")
# What runs did before the default changed: a record without the setting is one of such a run.
FORMERLY: dict[str, Any] = {"block_rate": 0.0}
# Settings of presets that are about block rotations: not applied to other transforms.
ABOUT_BLOCKS = ("block_size", "r", "rotation", "block_rate", "magnitude_rate")
# Mutually exclusive settings.
MUTUALLY_EXCLUSIVE: tuple[tuple[str, str], ...] = (("block_size", "r"), ("lora_rank", "block_size"), ("lora_rank", "r"))

# One magnitude scales a complete neuron, but many parameters rotate it: with the same learning rate, magnitudes learn
# too slowly. On the text world a factor of 5 forgets less at equal gain than 1 and 15 (docs/evidence/choosing.md).
MAGNITUDE_RATE = 5.0
# The exponent by which one learning rate fits every block size (docs/evidence/learning.md).
BLOCK_RATE = 1.0


class SettingError(ValueError):
    """A contradiction between settings.

    Args:
        key: the setting to change.
        contradiction: its description.
        do: advice for the user.
        others: further contradictions.
    """

    def __init__(self, key: str, contradiction: str, do: str, others: Sequence[SettingError] = ()) -> None:
        self.key, self.contradiction, self.do, self.others = key, contradiction, do, tuple(others)
        super().__init__(" ".join([f"{contradiction}. {do}.", *map(str, others)]))


class MethodSettings(BaseModel):
    """The settings of a run of any recipe. A preset supplies settings that were not given, if they apply to the method.

    The settings class of a recipe has these class variables: ``recipe``, the name, also of the folder of presets;
    ``world``, the built-in model, and the preset used for it; ``rates``, the learning rate per method; ``ball``, the
    COFT radius; ``only_for``, the methods for which a setting has a meaning; ``mutually_exclusive``, pairs of settings;
    ``tied``, settings of a preset that are dropped if another setting is given. Settings in ``newer`` are not part of
    the record of a run at their default, because older records do not have them. Where a default has changed since,
    ``formerly`` has the value that a record without the setting means.
    """

    model_config = ConfigDict(extra="forbid", validate_default=True)

    recipe: ClassVar[str]
    world: ClassVar[str]
    rates: ClassVar[dict[str, float]]
    ball: ClassVar[float]
    only_for: ClassVar[dict[str, tuple[str, ...]]] = ONLY_FOR
    mutually_exclusive: ClassVar[tuple[tuple[str, str], ...]] = MUTUALLY_EXCLUSIVE
    tied: ClassVar[dict[str, str]] = {}
    newer: ClassVar[tuple[str, ...]] = NEWER
    formerly: ClassVar[dict[str, Any]] = FORMERLY

    preset: str | None = Field(
        None, description="Supplies settings that are not given; `orthotune presets` lists them."
    )
    method: Method = Field("oft", description="What is trained: rotations, constrained ones, LoRA, or all weights.")
    adapter: Path | None = Field(
        None,
        description="Train this adapter further: a folder or file of any readable format, or a run; it decides the "
        "method and its sizes.",
    )
    block_size: Positive | None = Field(None, description="Side of a rotation block; default: 32.")
    r: Positive | None = Field(
        None,
        description="Number of rotation blocks per layer, instead of block_size; the rank of some transforms.",
    )
    transform: Transform = Field(
        "blocks",
        description="What OFT trains: blocks, or a relative by its name or that of its publication, as hra. Sizes and "
        "rotation of a preset are those of blocks, and are not applied to others.",
    )
    variant: str | None = Field(None, description="Of transforms that have several, as angles or road_4 of planes.")
    factors: Positive | None = Field(None, description="Stages of a butterfly; default: 2.")
    eps: float | None = Field(None, gt=0, description="COFT: the radius is eps / sqrt(blocks). Default: 1.")
    rotation: dict[str, Any] = Field({}, description="Further OFTConfig options, as side, magnitude or scaled.")
    magnitude_rate: float = Field(
        MAGNITUDE_RATE,
        gt=0,
        description="Learning rate of the scales of rotation.magnitude, or of boft, as times learning_rate.",
    )
    block_rate: float = Field(
        BLOCK_RATE,
        ge=0,
        le=2,
        description="Exponent p: blocks of size b learn at (32 / b)^p times learning_rate, so that one rate fits every "
        "size. 0: all at the same rate.",
    )
    lora_rank: Positive | None = Field(None, description="Default: as many trainable parameters as OFT would have.")
    lora_alpha: float | None = Field(None, gt=0, description="Default: twice the rank.")
    lora: dict[str, Any] = Field({}, description="Further LoraConfig options, as use_dora or use_rslora.")

    learning_rate: float = Field(
        1e-4, gt=0, description="A number, or one per method. Default: that of the preset or the method."
    )
    batch_size: Positive = Field(8, description="Rows of a batch, of all processes together.")
    gradient_accumulation: Positive = Field(1, description="Batches per step of the optimizer.")
    gradient_checkpointing: bool = Field(
        False, description="Compute activations again in the backward: less memory, more time."
    )
    warmup: float = Field(0.05, ge=0, description="Steps, or a fraction of them when below 1.")
    schedule: Literal["cosine", "linear", "constant"] = Field(
        "cosine", description="Of the learning rate, after the warmup."
    )
    weight_decay: float = Field(0.0, ge=0, description="Of the optimizer; on rotations it pulls towards the base.")
    seed: int = Field(0, description="Of the order of the data, and of all that is random.")

    save_every: Positive | None = Field(None, description="Steps; default: four times over the run.")
    save_total_limit: Positive = Field(2, description="Checkpoints that are kept.")
    max_skipped: Annotated[int, Field(ge=0)] = Field(
        10, description="Most steps with a non-finite loss or gradient that are skipped before the run stops."
    )
    on_failed_save: Literal["stop", "go-on"] = Field(
        "stop", description="If a checkpoint cannot be written, as on a full disk; the previous one is kept."
    )
    stop_when: dict[str, Any] = Field(
        {},
        description="Rules that end the run at a measurement, as {forgetting: 0.05}: forgetting (more than that), gain "
        "(at least that), patience (so many measurements without a larger gain - forgetting). In nats per token, for "
        "image models in units of the denoiser's loss.",
    )
    result: Literal["last", "best"] = Field(
        "last", description="Parameters of the last step, or of the measurement with the largest gain - forgetting."
    )
    resume: str = Field(
        "never",
        description="never, auto (newest checkpoint of the output, with the settings of the run there), "
        "or a checkpoint's path.",
    )
    output: Path = Field(Path("runs"), description="Run directory. Default: runs/RECIPE-METHOD.")

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        return cls._filled(values) if isinstance(values, dict) else values

    @classmethod
    def _filled(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The given settings, with those of the preset and those that depend on the method."""
        given = {key: value for key, value in values.items() if value is not None}
        if "preset" not in given and given.get("model", cls.world) == cls.world:
            given["preset"] = cls.world
        given = cls._continued(given)
        if isinstance(given.get("preset"), str):
            given = cls._from_preset(given) | given
        method = given.get("method", "oft")
        if method == "coft":
            given.setdefault("eps", cls.ball)
        rates = given.get("learning_rate", {})
        if isinstance(rates, dict):
            known = {**cls.rates, **rates}
            given["learning_rate"] = known.get(str(method), cls.model_fields["learning_rate"].default)
        if isinstance(method, str):
            given.setdefault("output", Path("runs") / f"{cls.recipe}-{method}")
        return given

    @model_validator(mode="after")
    def _contradictions(self) -> MethodSettings:
        faults: list[tuple[str, str, str]] = []
        for key, methods in self.only_for.items():
            if key in self.model_fields_set and self.method not in methods:
                contradiction = f"{key} has no meaning for method={self.method}"
                choice = " or ".join(f"method={name}" for name in methods)
                faults.append((key, contradiction, f"Leave it out, or choose {choice}"))
        faulty = {key for key, _, _ in faults}
        if "magnitude_rate" in self.model_fields_set - faulty and not self._has_magnitudes:
            contradiction = "magnitude_rate has no meaning without rotation.magnitude"
            faults.append(("magnitude_rate", contradiction, "Add rotation.magnitude=true, or leave it out"))
        for one, other in self.mutually_exclusive:
            if {one, other} <= self.model_fields_set:
                faults.append((other, f"{one} and {other} are mutually exclusive", f"Keep {one} or {other}"))
        faults += self._transform_faults()
        if faults:
            raise SettingError(*faults[0], others=[SettingError(*one) for one in faults[1:]])
        return self

    def _transform_faults(self) -> list[tuple[str, str, str]]:
        if self.method not in ("oft", "lora"):
            return []
        twice = [
            key for key in ("transform", "variant", "factors") if key in self.rotation.keys() & self.model_fields_set
        ]
        if twice:
            fault = f"{twice[0]} and rotation.{twice[0]} are mutually exclusive"
            return [(twice[0], fault, f"Keep {twice[0]}")]
        given_rate = self.block_rate if "block_rate" in self.model_fields_set else 0.0
        own = {"block_size": self.block_size, "block_rate": given_rate}
        found = transform_fault({"transform": "blocks", **self.rotation_options, **own})
        if found is None and self.method == "oft" and getattr(self, "rewind", "none") != "none":
            why = rewinding_fault(self.rotation_options, self.r)
            fault = f"rewind and transform={self.transform} are mutually exclusive: {why} has no strengths between"
            return [] if why is None else [("rewind", fault, "Leave rewind out")]
        return [] if found is None else [found]

    @property
    def rotation_options(self) -> dict[str, Any]:
        """The options of ``OFTConfig`` besides sizes: those of ``rotation``, and the transform with its own."""
        return self.rotation | transform_options(self.transform, self.variant, self.factors)

    @classmethod
    def without_excluded(cls, every: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of all runs without those that contradict the own settings of one: another size or transform.

        Args:
            every: the settings of all runs.
            own: the settings of the run that come before them.
        """
        excluded = {key for pair in cls.mutually_exclusive for key in pair if set(pair) - {key} <= own.keys()}
        if own.get("transform", "blocks") not in BLOCKS:
            excluded |= {"block_size", "r", "variant", "factors", "block_rate"}
        return {key: value for key, value in every.items() if key not in excluded}

    @model_validator(mode="after")
    def _known_rules(self) -> MethodSettings:
        if faults := rule_faults(self.stop_when):
            raise SettingError(*faults[0], others=[SettingError(*fault) for fault in faults[1:]])
        return self

    @property
    def rate_factors(self) -> RateFactors:
        """By how much the learning rates of magnitudes, and of blocks of other sizes than 32, differ."""
        return RateFactors(self.magnitude_factor, self.block_rate if self._is_of_blocks else 0.0)

    @property
    def magnitude_factor(self) -> float:
        """The factor of the learning rate of magnitudes that are trained together with a rotation."""
        return self.magnitude_rate if self._has_magnitudes else 1.0

    @property
    def _has_magnitudes(self) -> bool:
        published = PUBLISHED.get(self.transform, ("", {}))[1]
        # The scale that belongs to a published transform, as boft's, learns at the rate of the rotation by default.
        if "magnitude_rate" in self.model_fields_set and published.get("magnitude"):
            return bool(self.rotation.get("magnitude", True))
        layers = self.rotation.get("layer_settings") or {}
        return any(one.get("magnitude") for one in (self.rotation, *layers.values()) if isinstance(one, dict))

    def record(self) -> dict[str, Any]:
        """The settings as JSON types, without settings that are None or have no meaning for the method."""
        dropped = {key for key, methods in self.only_for.items() if self.method not in methods}
        # A run from before a setting existed used its default, and can be resumed.
        if not self._has_magnitudes:
            dropped.add("magnitude_rate")
        usual = {key: field.default for key, field in type(self).model_fields.items()} | self.formerly
        dropped |= {key for key in self.newer if getattr(self, key) == usual[key]}
        if not self._has_other_blocks or not self._is_of_blocks:
            dropped.add("block_rate")
        return self.model_dump(mode="json", exclude=dropped, exclude_none=True)

    @property
    def _is_of_blocks(self) -> bool:
        return self.method in ("oft", "coft") and self.rotation.get("transform", self.transform) in BLOCKS

    @property
    def _has_other_blocks(self) -> bool:
        """Whether any layer may have blocks of another size than the usual one, by what was asked for."""
        sized = any("block_size" in key or "pattern" in key or key == "layer_settings" for key in self.rotation)
        return sized or self.r is not None or self.block_size not in (None, REFERENCE)

    def claimed(self) -> dict[str, Any]:
        """The record with the name of the job, by which another job refuses to go on with the run."""
        adapter = type(self).model_fields.get("adapter")
        fits = adapter is not None and adapter.is_required()  # as only the fit of magnitudes requires one
        return self.record() | {"recipe": "magnitude" if fits else self.recipe}

    @classmethod
    def _continued(cls, given: dict[str, Any]) -> dict[str, Any]:
        """The settings with those that the adapter decides that is trained further."""
        # A fit of magnitudes has a setting of this name, too, that must be given.
        # Another type than a path is worded by the field's own check.
        if not isinstance(given.get("adapter"), (str, Path)) or cls.model_fields["adapter"].is_required():
            return given
        decided = decided_by(given["adapter"])
        asked = {"method": given["method"]} if "method" in given else {}
        asked |= {key: given[key] for key in DECIDED if key in given}
        for key, value in asked.items():
            usual: Any = {"block_size": None, "target_modules": cls.model_fields["target_modules"].default}.get(key, {})
            if value != decided.get(key, usual) and value is not None:
                own = f", {key}={decided[key]}" if key in decided else ""
                fault = f"{key}={value} is decided by the adapter that is continued{own}"
                raise SettingError(key, fault, f"Leave {key} out, or adapter")
        return given | decided

    @classmethod
    def _from_preset(cls, given: dict[str, Any]) -> dict[str, Any]:
        """The settings of the preset that do not contradict given settings and apply to the method."""
        filled = preset.settings_of(given["preset"], cls.recipe)
        method = given.get("method", "oft")
        dropped = {key for key, other in cls.tied.items() if other in given}
        dropped |= {other for pair in cls.mutually_exclusive for other in pair if given.keys() & set(pair)}
        dropped |= {key for key, methods in cls.only_for.items() if method not in methods}
        if given.get("transform", "blocks") not in BLOCKS:
            dropped |= set(ABOUT_BLOCKS)
        if given.get("adapter") is not None and not cls.model_fields["adapter"].is_required():
            dropped |= set(DECIDED)
        return {key: value for key, value in filled.items() if key not in dropped}
