"""The settings of one supervised finetuning run, checked when they are made."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from orthotune.recipes import text_settings
from orthotune.recipes.data_settings import DataSet, FormName, data_sets
from orthotune.recipes.method_settings import METHODS, Method, Positive, SettingError
from orthotune.recipes.text_settings import LEARNING_RATES, MUTUALLY_EXCLUSIVE, WITH_ADAPTER, WORLD, TextSettings

__all__ = [
    "LEARNING_RATES",
    "METHODS",
    "MUTUALLY_EXCLUSIVE",
    "ONLY_FOR",
    "WORLD",
    "Method",
    "SFTSettings",
    "SettingError",
]

#: How strengths are chosen for a finished adapter.
Rewind = Literal["none", "auto", "kind", "projection", "depth", "layer"]
#: value of keep_data for texts that the base model generates
GENERATED = "generated"
#: value of old_data for no texts of the source domain
NO_DATA = "none"
#: options of an adapter with which parameters beside rotations and LoRA's factors are trained
NO_STRENGTH = ("use_dora", "bias", "modules_to_save", "trainable_token_indices")
ONLY_FOR: dict[str, tuple[str, ...]] = {
    **text_settings.ONLY_FOR,
    "keep": WITH_ADAPTER,
    "keep_data": WITH_ADAPTER,
    "keep_batch": WITH_ADAPTER,
}


class SFTSettings(TextSettings):
    """Everything that decides a supervised finetuning run.

    A preset fills in what was not given and applies to the method. Without a model, the preset is ``text-world``:
    the small model and texts that come with the package.

    Example:
        >>> SFTSettings(method="lora").learning_rate
        0.002
    """

    recipe: ClassVar[str] = "sft"
    only_for: ClassVar[dict[str, tuple[str, ...]]] = ONLY_FOR
    # Held-out data belongs to the data that it was held out from.
    tied: ClassVar[dict[str, str]] = {"eval_data": "data"}
    newer: ClassVar[tuple[str, ...]] = (
        *TextSettings.newer,
        "keep",
        "answers",
        "rewind",
        "max_dropped",
        "loss_on",
        "columns",
        "roles",
        "system_prompt",
        "mixture_stop",
    )

    data: str | list[DataSet] = Field(
        description="File, directory, pattern, hub name or text-world/SPLIT to learn from; or several sets by weight: "
        "[{path: a.jsonl, weight: 0.7}, {path: b.parquet, weight: 0.3}]."
    )
    data_format: FormName = Field("auto", description="Form of the rows; auto: recognized by their columns.")
    columns: dict[str, str] = Field(
        {},
        description="Names of columns, as {prompt: question, completion: answer}: first the form's, then the data's.",
    )
    roles: dict[str, str] = Field(
        {}, description="Names of speakers in the data and the roles that they are, as {customer: user}."
    )
    system_prompt: str | None = Field(None, description="Put before dialogues of `data` that have no system message.")
    mixture_stop: Literal["first", "last"] = Field(
        "first",
        description="A mixture of sets ends when the first of them is used up, or the last; others then begin again.",
    )
    eval_data: str | None = Field(None, description="Held-out data of the target domain; default: a part of `data`.")
    old_data: str | None = Field(
        None, description="Data of the source domain, to measure what is forgotten; none. Default: some Python sources."
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
    answers: bool = Field(
        False, description="Ask the model short questions with exact answers before and after training; scores."
    )
    rewind: Rewind = Field(
        "none",
        description="Choose strengths for the finished adapter, as `orthotune rewind`: auto, one for all layers, or "
        "one by kind, projection, depth or layer.",
    )
    loss_on: Literal["all", "answers"] = Field(
        "all", description="Of dialogues (messages): every token, or the messages of the assistant alone."
    )
    max_dropped: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5,
        description="Share of the rows of `data` that may be blank or have nothing to learn in max_length.",
    )
    packing: Literal["auto", "none", "wrapped", "bfd_split"] = Field(
        "auto",
        description="auto: running text is wrapped (nothing is cut off), dialogues stay one per row. bfd_split: "
        "several examples in a row, none of which reads another.",
    )

    @field_validator("data", mode="before")
    @classmethod
    def _named_sets(cls, value: Any) -> Any:
        return data_sets(value)

    @property
    def sets(self) -> list[DataSet]:
        """The sets of `data`, with what the settings say of all of them."""
        given = [DataSet.model_validate({"path": self.data})] if isinstance(self.data, str) else self.data
        return [
            one.model_copy(
                update={
                    "format": self.data_format if one.format == "auto" else one.format,
                    "columns": self.columns | one.columns,
                    "roles": self.roles | one.roles,
                    "system_prompt": self.system_prompt if one.system_prompt is None else one.system_prompt,
                }
            )
            for one in given
        ]

    @classmethod
    def _from_preset(cls, given: dict[str, Any]) -> dict[str, Any]:
        filled = super()._from_preset(given)
        if given.get("keep") == 0:  # the rest of what a preset keeps has no meaning then
            filled = {key: value for key, value in filled.items() if key not in ("keep_data", "keep_batch")}
        return filled

    @model_validator(mode="after")
    def _mixes(self) -> SFTSettings:
        if self.mixture_stop != "first" and (isinstance(self.data, str) or len(self.data) == 1):
            fault = "mixture_stop has no meaning for one set of data"
            raise SettingError("mixture_stop", fault, "Name several: data=[{path: A, weight: 1}, {path: B, weight: 1}]")
        return self

    @model_validator(mode="after")
    def _answers_in_engine(self) -> SFTSettings:
        if self.answers and self.distributed not in ("none", "ddp"):
            fault = f"answers needs a complete model in one process, which distributed={self.distributed} does not have"
            raise SettingError("answers", fault, "Run `orthotune evaluate answers` on the output, or choose ddp")
        return self

    @model_validator(mode="after")
    def _keeps(self) -> SFTSettings:
        if not self.keep:
            for key in ("keep_data", "keep_batch"):
                if getattr(self, key) is not None:
                    raise SettingError(key, f"{key} has no meaning without keep", f"Add keep=1, or leave {key} out")
            return self
        options = "lora" if self.method == "lora" else "rotation"
        if (bias := getattr(self, options).get("bias", "none")) != "none":
            fault = f"keep compares with the base, of which {options}.bias={bias} trains a part"
            raise SettingError("keep", fault, "Leave out one of them")
        if self.keep_data is None:
            self.keep_data = f"{WORLD}/old_train" if self.model == WORLD else GENERATED
        if self.keep_batch is None:
            self.keep_batch = max(1, self.batch_size // 2)
        self._keeps_in_engine()
        return self

    @model_validator(mode="after")
    def _measures_what_is_asked(self) -> SFTSettings:
        if self.old_data == NO_DATA and "forgetting" in self.stop_when:
            fault = "stop_when.forgetting needs texts of the source domain, and old_data=none names none"
            raise SettingError("stop_when.forgetting", fault, "Name old_data=FILE")
        return self

    @model_validator(mode="after")
    def _rewinds(self) -> SFTSettings:
        check_rewind(self.rewind, self, self.old_data)
        return self

    def _keeps_in_engine(self) -> None:
        if self.distributed.startswith("zero"):
            fault = f"keep needs two forwards for one backward, which distributed={self.distributed} is not run with"
            raise SettingError("keep", fault, "Choose distributed=ddp or fsdp2")
        if self.distributed == "fsdp2" and self.keep_data == GENERATED:
            fault = "keep_data=generated needs a complete base in one process, which distributed=fsdp2 does not have"
            raise SettingError("keep_data", fault, "Name texts, as the keep-texts.jsonl of a run of one process")


def check_rewind(rewind: str, settings: TextSettings, old_data: str | None) -> None:
    """Refuse the setting ``rewind`` where the finished run could not be rewound.

    Args:
        rewind: the setting.
        settings: of the run.
        old_data: of the run, the texts of the source domain.

    Raises:
        SettingError: one process cannot do it, no texts of the source domain, or parts without a strength.
    """
    if rewind == "none":
        return
    if old_data == NO_DATA:
        fault = "rewind needs texts of the source domain, and old_data=none names none"
        raise SettingError("rewind", fault, "Name old_data=FILE, or leave old_data out")
    if settings.distributed != "none":
        fault = f"rewind is done by one process, and distributed={settings.distributed} starts several"
        raise SettingError("rewind", fault, "Leave it out, and after the run call orthotune rewind RUN")
    if settings.method == "full" and old_data is None:
        fault = "rewind after method=full needs texts of the source domain: no base is beside the model to write any"
        raise SettingError("rewind", fault, "Name old_data=FILE")
    for options in ("rotation", "lora"):
        for key in NO_STRENGTH:
            if (value := getattr(settings, options).get(key)) not in (None, False, "none", []):
                fault = f"rewind chooses strengths, and what {options}.{key}={value} trains has none"
                raise SettingError("rewind", fault, "Leave out one of them")
