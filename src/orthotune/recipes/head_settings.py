"""The settings that recipes share whose model has a head of its own: classes, tags, embeddings, transcripts."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field, model_validator

from orthotune.recipes.method_settings import SettingError
from orthotune.recipes.text_settings import TextSettings

#: Share of the rows of ``data`` that is held out where nobody named ``eval_data``.
HELD_OUT = 0.1


class HeadSettings(TextSettings):
    """Data to learn from and to measure on; ``absent`` names settings of language models without a meaning here."""

    tied: ClassVar[dict[str, str]] = {"eval_data": "data"}
    absent: ClassVar[tuple[str, ...]] = ("eval_tokens",)

    data: str = Field(description="File, directory or hub name to learn from.")
    eval_data: str | None = Field(None, description="Held-out data; default: a part of `data`.")
    old_data: str | None = Field(
        None, description="Older data of the same task: the scores on them show what is forgotten."
    )
    held_out: Annotated[float, Field(ge=0, le=0.5)] = Field(
        HELD_OUT, description="Share of `data` that is measured on and not learned from, without eval_data."
    )

    @model_validator(mode="after")
    def _has_meaning(self) -> HeadSettings:
        given = [key for key in self.absent if key in self.model_fields_set]
        faults = [SettingError(key, f"{key} has no meaning for train {self.recipe}", "Leave it out") for key in given]
        if faults:
            raise SettingError(faults[0].key, faults[0].contradiction, faults[0].do, others=faults[1:])
        if self.old_data is None and "forgetting" in self.stop_when:
            fault = "stop_when.forgetting needs data of the source domain, and old_data names none"
            raise SettingError("stop_when.forgetting", fault, "Name old_data=FILE")
        if self.distributed not in ("none", "ddp"):
            fault = f"train {self.recipe} measures with a complete model, which distributed={self.distributed} spreads"
            raise SettingError("distributed", fault, "Choose distributed=ddp or none")
        return self

    def record(self) -> dict[str, Any]:
        return {key: value for key, value in super().record().items() if key not in self.absent}
