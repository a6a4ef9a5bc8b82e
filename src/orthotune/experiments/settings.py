"""The settings of a comparison: its methods and variants, learning rates, seeds, strengths, and those of every run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from orthotune.recipes.method_settings import METHODS, Method, MethodSettings, SettingError

#: What a comparison varies or does for every run, and what is written instead of it.
VARIED = {"method": "methods", "learning_rate": "learning_rates", "seed": "seeds", "output": "output", "resume": ""}
Rates = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)]


class CompareSettings(BaseModel):
    """A grid of runs of one job: methods and variants by learning rates by seeds.

    A task's own class adds a field for the settings of every run and names it in ``inside``.
    """

    model_config = ConfigDict(extra="forbid", validate_default=True)

    inside: ClassVar[str] = "runs"
    offered: ClassVar[tuple[str, ...]] = METHODS

    seeds: Annotated[list[int], Field(min_length=1)] = [0]
    parallel: Annotated[int, Field(gt=0)] = Field(1, description="Runs at the same time, each with its share of cores.")
    output: Path = Path("runs")
    methods: list[Method] = Field(list(METHODS))
    variants: dict[str, dict[str, Any]] = Field(
        {}, description="Further methods by name: their method (oft if not given), settings and learning_rates."
    )
    learning_rates: dict[Method, Rates] = Field(
        {}, description="Rates by method; default: 0.4, 1 and 2.5 times the preset's."
    )
    strengths: list[Annotated[float, Field(gt=0)]] = Field(
        [1.0], min_length=1, description="Strengths at which finished runs are measured; 1 is as trained."
    )
    against: str = Field("lora", description="The method or variant that the others are compared with.")

    @property
    def every_run(self) -> dict[str, Any]:
        """The settings of every run."""
        found: dict[str, Any] = getattr(self, self.inside)
        return found

    @property
    def first_seeds(self) -> list[int]:
        """The seeds that run at every learning rate."""
        return self.seeds

    @model_validator(mode="after")
    def _can_be_run(self) -> CompareSettings:
        if not self.methods and not self.variants:
            raise SettingError("methods", "methods=[] without variants leaves nothing to run", "Name one of either")
        for name, given in self.variants.items():
            self._check_variant(name, given)
        known = [*self.methods, *self.variants]
        if "against" in self.model_fields_set and self.against not in known:
            raise SettingError("against", f"against={self.against}", f"Choose one of {', '.join(known)}")
        return self

    def _check_variant(self, name: str, given: Mapping[str, Any]) -> None:
        if name in self.offered or "/" in name or not name:
            do = "Call it by a name that is no method's, without a slash"
            raise SettingError("variants", f"a variant called {name!r}", do)
        if varied := sorted(set(given) & (set(VARIED) - {"method", "learning_rate"})):
            raise SettingError("variants", f"variants.{name}.{varied[0]}", "Leave it out: the comparison sets it")
        if "learning_rate" in given or not _are_rates(given.get("learning_rates", [1.0])):
            raise SettingError(
                "variants", f"the learning rate of variants.{name}", "Write learning_rates=[...], numbers above 0"
            )
        if given.get("method", "oft") not in METHODS:
            unknown = f"variants.{name}.method={given['method']!r}"
            raise SettingError("variants", unknown, f"Choose one of {', '.join(METHODS)}")


def settings_of(method: str, given: Mapping[str, Any], runs: type[MethodSettings]) -> dict[str, Any]:
    """The settings of every run without those that have no meaning for ``method``.

    Args:
        method: oft, coft, lora or full.
        given: the settings of every run.
        runs: the class of a run's settings.
    """
    base = {key: value for key, value in given.items() if method in runs.only_for.get(key, METHODS)}
    if "lora_rank" in base:  # then nothing is left to match to a block size
        base = {key: value for key, value in base.items() if key not in ("block_size", "r")}
    return {**base, "method": method, "resume": "auto"}


def _are_rates(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and all(isinstance(one, (int, float)) and one > 0 for one in given)
