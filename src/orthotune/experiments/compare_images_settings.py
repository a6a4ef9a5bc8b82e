"""The settings of a comparison of image runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from orthotune.experiments import grid, variants
from orthotune.experiments.image_tasks import TASKS
from orthotune.recipes import load
from orthotune.recipes.method_settings import SettingError

ImageMethod = Literal["oft", "coft", "oft+magnitude", "lora", "full"]
IMAGE_METHODS: tuple[ImageMethod, ...] = ("oft", "coft", "oft+magnitude", "lora", "full")


class CompareImagesSettings(grid.Grid):
    """A grid of runs of one image recipe on the image world.

    Example:
        >>> CompareImagesSettings(task="control", methods=["oft"]).output.name
        'compare-control'
    """

    task: Literal["subject", "control"]
    methods: list[ImageMethod] = Field(list(IMAGE_METHODS))
    variants: dict[str, dict[str, Any]] = Field(
        {}, description="Further contenders by name: their method (oft if not said), settings and learning_rates."
    )
    learning_rates: dict[ImageMethod, Annotated[list[float], Field(min_length=1)]] = Field(
        {}, description="Rates by method; default: 1/4, 1/2, 1, 2 and 4 times the preset's."
    )
    seeds: list[int] = Field([0, 1, 2], min_length=1)
    sweep_seeds: Annotated[int, Field(gt=0)] = Field(
        1, description="How many of the seeds run at every rate; the others run at each method's best rate only."
    )
    strengths: list[Annotated[float, Field(gt=0)]] = Field(
        [1.0],
        min_length=1,
        description="Strengths at which the chosen runs are scored for their frontiers.",
    )
    against: str = Field("lora", description="The method or variant that the others are set against, at equal gain.")
    runs: dict[str, Any] = Field({}, description="Settings of every run, as for `orthotune train`.")

    @model_validator(mode="before")
    @classmethod
    def _named_by_its_task(cls, values: Any) -> Any:
        if isinstance(values, dict) and "output" not in values:
            return {**values, "output": Path("runs") / f"compare-{values.get('task')}"}
        return values

    @model_validator(mode="after")
    def _complete(self) -> CompareImagesSettings:
        if not self.methods and not self.variants:
            raise SettingError("methods", "methods=[] without variants leaves nothing to run", "Name one of either")
        variants.check(self.variants, IMAGE_METHODS)
        known = [*self.methods, *self.variants]
        variants.check_against(self.against, known, "against" in self.model_fields_set)
        return self


def load_compare(task: str, recipe: Path | None, overrides: Sequence[str]) -> CompareImagesSettings:
    """The settings in a file and on the command line; what is no key of the grid is a setting of every run.

    Raises:
        RecipeError: as for a single run; also a key that the grid itself varies.
    """
    kind = TASKS[task].settings
    settings, said = grid.load_grid(CompareImagesSettings, kind, "runs", recipe, [*overrides, f"task={task}"])
    for base, _ in contenders(settings).values():
        load.check(kind, load.Said(base, said.places))
    return settings


def contenders(settings: CompareImagesSettings) -> variants.Contenders:
    """All that are compared, by name."""
    rates: dict[Any, list[float]] = {**settings.learning_rates}
    own = {method: (_settings_of(method, settings), rates.get(method)) for method in settings.methods}
    return own | variants.contenders(settings.variants, settings.runs, rates, TASKS[settings.task].settings)


def _settings_of(method: str, settings: CompareImagesSettings) -> dict[str, Any]:
    """The settings of the runs of one method, without rate, seed and output."""
    plain, _, magnitude = method.partition("+")
    base = grid.settings_of(plain, settings.runs, TASKS[settings.task].settings)
    if magnitude:
        base["rotation"] = {**base.get("rotation", {}), "magnitude": True}
    if not base.get("rotation", {}).get("magnitude"):  # has no meaning then, and is said of all methods at once
        base.pop("magnitude_rate", None)
    return base
