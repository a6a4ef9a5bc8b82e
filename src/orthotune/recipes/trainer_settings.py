"""The settings of recipes on a trainer of TRL: those of any language model, and the fields of the trainer config."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator

from orthotune.errors import OrthotuneError, RecipeError
from orthotune.recipes import trainer_keys
from orthotune.recipes.method_settings import SettingError
from orthotune.recipes.settings import NO_DATA
from orthotune.recipes.text_job import trainer_arguments
from orthotune.recipes.text_settings import TextSettings
from orthotune.text.arguments import run_arguments


class TrainerSettings(TextSettings):
    """What decides a run by a trainer of TRL; a recipe's settings add its data.

    Every field of the trainer's config is a key as well, unless a setting does the same: ``beta=0.2`` and
    ``trainer.beta=0.2`` mean the same, and both end up in ``trainer``.
    """

    #: ``module:Class`` of the trainer's config
    trainer_config: ClassVar[str]

    trainer: dict[str, Any] = Field(
        {}, description="Fields of the trainer's config in TRL, as {beta: 0.2}; each may be a key of its own: beta=0.2."
    )
    old_data: str | None = Field(
        None, description="Data of the source domain, to measure what is forgotten; none. Default: some Python sources."
    )

    @classmethod
    def passed_keys(cls) -> list[str]:
        """The keys beside the settings that are passed to the trainer's config."""
        return [key for key in trainer_keys.passed_keys(cls.trainer_config) if key not in cls.model_fields]

    @classmethod
    def decided_keys(cls) -> list[str]:
        """The fields of the trainer's config that the run decides; each is refused with the reason."""
        known = trainer_keys.fields_of(cls.trainer_config)
        return [key for key in known if key not in cls.model_fields and key not in cls.passed_keys()]

    @classmethod
    def _filled(cls, values: dict[str, Any]) -> dict[str, Any]:
        given = cls._gathered(values)
        passed = given.pop("trainer", None)
        filled = cls._gathered(super()._filled(given))
        if passed is not None and not isinstance(passed, dict):
            return filled | {"trainer": passed}  # the field's own check words the wrong type
        return filled | {"trainer": {**filled.get("trainer", {}), **(passed or {})}}

    @classmethod
    def _gathered(cls, values: dict[str, Any]) -> dict[str, Any]:
        """``values`` with the fields of the trainer's config in ``trainer``."""
        others = [key for key in values if key not in cls.model_fields]
        if not others:
            return dict(values)
        known = {*cls.passed_keys(), *cls.decided_keys()}
        taken = {key: values[key] for key in others if key in known}
        inner = values.get("trainer") or {}
        if not taken or not isinstance(inner, dict):
            return dict(values)
        rest = {key: value for key, value in values.items() if key not in taken}
        return rest | {"trainer": {**inner, **taken}}

    @model_validator(mode="after")
    def _passes(self) -> TrainerSettings:
        if not self.trainer:
            return self
        # A recipe that fits further settings to another one gives them itself: see magnitude.py.
        own = dict.fromkeys(type(self).model_fields)
        found = [(key, trainer_keys.fault_of(self.trainer_config, str(key), value, own))
                 for key, value in self.trainer.items()]  # fmt: skip
        faults = [SettingError(f"trainer.{key}", *fault) for key, fault in found if fault is not None]
        if faults:
            first = faults[0]
            raise SettingError(first.key, first.contradiction, first.do, others=faults[1:])
        for key, value in self.trainer.items():
            self.trainer[key] = trainer_keys.as_field(self.trainer_config, key, value)
        return self

    @model_validator(mode="after")
    def _measures_what_is_forgotten(self) -> TrainerSettings:
        if self.old_data == NO_DATA and "forgetting" in self.stop_when:
            fault = "stop_when.forgetting needs texts of the source domain, and old_data=none names none"
            raise SettingError("stop_when.forgetting", fault, "Name old_data=FILE")
        return self


def passed_arguments(settings: TrainerSettings, checkpoints: Path, dtype: torch.dtype, **options: Any) -> Any:
    """The arguments of a recipe's trainer: as the settings say, and with the fields that they pass on.

    Args:
        settings: of the run.
        checkpoints: the folder of the run's checkpoints.
        dtype: that the model computes in.
        **options: fields that the recipe sets.

    Raises:
        RecipeError: fields that the config refuses.
    """
    make = partial(run_arguments, trainer_keys.config_class(settings.trainer_config))
    with worded(settings):
        return trainer_arguments(make, settings, checkpoints, dtype, **(options | settings.trainer))


@contextmanager
def worded(settings: TrainerSettings) -> Iterator[None]:
    """Word what the trainer or its config refuses as an error of the recipe.

    Args:
        settings: of the run.

    Raises:
        RecipeError: names the fields that were passed on.
    """
    try:
        yield
    except OrthotuneError:
        raise
    except (ValueError, TypeError, NotImplementedError, ImportError) as fault:
        kind = settings.trainer_config.partition(":")[2]
        given = ", ".join(f"{key}={value!r}" for key, value in settings.trainer.items()) or "no field passed on"
        raise RecipeError(f"{kind} ({given})", got=" ".join(str(fault).split())) from fault
