"""The settings of the recipes that learn from preferences; each recipe adds its name and its trainer's config."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from orthotune.recipes.settings import Rewind, check_rewind
from orthotune.recipes.trainer_settings import TrainerSettings
from orthotune.text.preferences import PAIRS

#: Preferences are learned at a tenth of the rates of supervised finetuning: TRL's own default for DPO and KTO, 1e-6 in
#: full, is a twentieth of its default for texts. Presets know better for their family.
RATES: dict[str, float] = {"oft": 4e-5, "coft": 4e-5, "lora": 1e-5, "full": 1e-6}


class PreferenceSettings(TrainerSettings):
    """Everything that decides a run on preferences.

    Without a model, the preset is ``text-world``: the small model that comes with the package, and preferences that are
    made from the texts beside it.
    """

    rates: ClassVar[dict[str, float]] = RATES
    # Held-out data belongs to the data that it was held out from.
    tied: ClassVar[dict[str, str]] = {"eval_data": "data"}
    #: the form of the data, ``pairs`` or ``labelled``
    form: ClassVar[str] = PAIRS
    #: the trainer drops examples longer than max_length, where others cut off their ends
    complete: ClassVar[bool] = False
    #: the model predicts tokens, so that the losses of the domains can be measured
    predicts: ClassVar[bool] = True

    data: str = Field(
        description="File, directory, hub name or text-world/SPLIT of preferences: prompt, chosen and rejected."
    )
    eval_data: str | None = Field(None, description="Held-out preferences; default: a part of `data`.")
    max_dropped: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="Share of the rows of `data` that may be empty, twice the same or too long to learn from."
    )
    rewind: Rewind = Field(
        "none",
        description="Choose strengths for the finished adapter, as `orthotune rewind`: auto, one for all layers, or "
        "one by kind, projection, depth or layer.",
    )

    @model_validator(mode="after")
    def _rewinds(self) -> PreferenceSettings:
        check_rewind(self.rewind, self, self.old_data)
        return self
