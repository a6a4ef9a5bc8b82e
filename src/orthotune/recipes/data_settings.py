"""Settings of one set of texts or dialogues, and settings as ``data`` that name one set or several."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from orthotune.errors import nearest
from orthotune.recipes.method_settings import SettingError

#: Forms of rows, as :data:`orthotune.text.row_forms.FORMS` has them.
FormName = Literal["auto", "text", "prompt-completion", "messages", "alpaca", "sharegpt"]
#: What is written in place of a mapping for the first set of a list.
EXAMPLE = "data=[{path: a.jsonl, weight: 0.7}, {path: b.parquet, weight: 0.3}]"


class DataSet(BaseModel):
    """One set of texts or dialogues in a list of several.

    Example:
        >>> DataSet(path="owner/name", config="en", split="test").source
        'owner/name:en:test'
    """

    model_config = ConfigDict(extra="forbid")

    path: str = Field(description="File, directory, pattern, hub name, or a word with a split as `manpages-fr/train`.")
    weight: float = Field(1.0, description="Share of the set in the mixture, relative to the other weights.")
    format: FormName = Field("auto", description="Form of the rows; default: `data_format`.")
    columns: dict[str, str] = Field({}, description="Names of columns, beside those of the run.")
    roles: dict[str, str] = Field({}, description="Names of speakers, beside those of the run.")
    system_prompt: str | None = Field(None, description="Default: that of the run.")
    config: str | None = Field(None, description="Of a hub set that has several.")
    split: str | None = Field(None, description="Of a hub set. Default: train.")

    @property
    def source(self) -> str:
        """The set as one text: a path, or the hub's NAME:CONFIG:SPLIT."""
        if self.config is None and self.split is None:
            return self.path
        return ":".join([self.path, *([self.config] if self.config else []), self.split or "train"])


def data_sets(value: Any) -> Any:
    """The sets that a setting as ``data`` names: a text as it is, anything else as a list of :class:`DataSet`.

    Args:
        value: a text; a mapping; or a list of texts and mappings.

    Raises:
        SettingError: an empty list, an unknown key, a value of another kind, or a weight that is not above 0.

    Example:
        >>> [one.weight for one in data_sets(["a.jsonl", {"path": "b.csv", "weight": 3}])]
        [1.0, 3.0]
    """
    if isinstance(value, str):
        return value
    given = value if isinstance(value, list) else [value]
    if not given:
        raise SettingError("data", "data is an empty list", f"Name at least one set, as {EXAMPLE}")
    return [
        _data_set(one, f"data[{number}]" if isinstance(value, list) else "data") for number, one in enumerate(given)
    ]


def _data_set(value: Any, key: str) -> DataSet:
    if isinstance(value, DataSet):
        return value
    if isinstance(value, str):
        return DataSet.model_validate({"path": value})
    if not isinstance(value, Mapping) or not isinstance(value.get("path"), str):
        raise SettingError("data", f"{key} is {value!r}, which names no path", f"Write {EXAMPLE}")
    for name in value:
        if name not in DataSet.model_fields:
            close = nearest(str(name), DataSet.model_fields, count=1)
            do = f"Did you mean {close[0]!r}" if close else f"Known keys: {', '.join(DataSet.model_fields)}"
            raise SettingError("data", f"{key} has the unknown key {name!r}", do)
    weight = value.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise SettingError("data", f"{key}: weight={weight!r} is not a number", "Write a number above 0, as 0.7")
    if weight <= 0:
        raise SettingError("data", f"{key}: weight={weight:g}", "Write a number above 0, or leave the set out")
    try:
        return DataSet(**value)
    except ValidationError as fault:
        first = fault.errors()[0]
        needed = first["msg"].replace("Input should be", "").strip()
        at = str(first["loc"][0])
        contradiction = f"{key}: {at}={value.get(at)!r}, and needed is {needed}"
        raise SettingError("data", contradiction, f"Correct {at}") from fault
