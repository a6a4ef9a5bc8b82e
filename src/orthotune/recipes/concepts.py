"""Several concepts in one subject run: each with its images, its prompt, its repeats and its class images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from math import gcd
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from orthotune.recipes.method_settings import Positive, SettingError


class Concept(BaseModel):
    """One concept of a subject run.

    Example:
        >>> Concept.model_validate({"images": "dog", "prompt": "a sks dog", "class_prompt": "a dog"}).class_prompts
        ['a dog']
    """

    model_config = ConfigDict(extra="forbid")

    images: str = Field(description="Folder with images of the concept.")
    prompt: str = Field(description="Name of the concept: a rare word and its class, as 'a sks dog'.")
    repeats: Positive = Field(1, description="How often its images are seen, as a ratio to those of other concepts.")
    class_prompt: str | list[str] | None = Field(None, description="Its class, as 'a dog', or several prompts.")
    class_images: Path | None = Field(None, description="Folder of its class images; missing ones are generated there.")
    class_count: Positive | None = Field(None, description="Number of its class images; default: that of the run.")
    prior_weight: float | None = Field(None, ge=0, description="Of its class images; default: that of the run.")
    token: str | None = Field(None, description="Its word; default: the first one that class_prompt does not contain.")

    @property
    def class_prompts(self) -> list[str]:
        """The prompts about its class; may be empty."""
        prompts = self.class_prompt or []
        return [prompts] if isinstance(prompts, str) else prompts


#: Settings of a run with one concept that several concepts have themselves.
OWN = {"instance_images": "images", "instance_prompt": "prompt", "class_prompt": "class_prompt",
       "class_images": "class_images", "token": "token"}  # fmt: skip


def first_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with those of the first concept in the place of a single one's.

    Args:
        values: as they were given, with ``concepts``.

    Raises:
        SettingError: a setting of a single concept beside several.
    """
    concepts = values["concepts"]
    for key in OWN:
        if key in values:
            fault = f"{key} and concepts are mutually exclusive: each concept has its own"
            raise SettingError(key, fault, f"Write {OWN[key]} in each of concepts")
    if not isinstance(concepts, list) or not concepts:
        return dict(values)  # the field's own check words the wrong type
    first = concepts[0] if isinstance(concepts[0], dict) else dict(concepts[0])
    return dict(values) | {key: first[own] for key, own in OWN.items() if first.get(own) is not None}


def ratio(repeats: Sequence[int]) -> list[int]:
    """Repeats as the smallest whole numbers of the same ratio: a run is measured in steps.

    Args:
        repeats: of each concept.

    Example:
        >>> ratio([10, 20])
        [1, 2]
    """
    common = reduce(gcd, repeats)
    return [count // common for count in repeats]
