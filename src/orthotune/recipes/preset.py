"""The presets: tested settings for a model family, one YAML file each, whose first line is the reason.

Presets of language models are in the folder itself, those of an image recipe in a subfolder of its name.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from orthotune.errors import RecipeError, nearest

FOLDER = Path(__file__).parent / "presets"
SFT = "sft"


@dataclass(frozen=True)
class Preset:
    """A preset: its name, the reason for its values, and its text."""

    name: str
    reason: str
    text: str


def names(recipe: str = SFT) -> list[str]:
    """The names of the presets of ``recipe``, sorted.

    Example:
        >>> "llama" in names(), "sdxl" in names("subject")
        (True, True)
    """
    return sorted(path.stem for path in _folder(recipe).glob("*.yaml"))


def recipes() -> list[str]:
    """The recipes that have presets, language models first."""
    return [SFT, *sorted(path.name for path in FOLDER.iterdir() if names(path.name))]


def read(name: str, recipe: str = SFT) -> Preset:
    """Read a preset.

    Args:
        name: of the preset; may begin with the recipe, as ``subject/sdxl``.
        recipe: of the preset.

    Raises:
        RecipeError: there is no preset of that name.
    """
    before, slash, after = name.partition("/")
    if slash and before in recipes():
        recipe, name = before, after
    known = names(recipe)
    if name not in known:
        close = nearest(name, known, count=1)
        raise RecipeError(
            f"preset {name!r}",
            got="no such preset",
            needed=f"one of {', '.join(known)}",
            do=f"Did you mean {close[0]!r}?" if close else None,
        )
    text = (_folder(recipe) / f"{name}.yaml").read_text(encoding="utf-8")
    return Preset(name, text.splitlines()[0].lstrip("# ").strip(), text)


def settings_of(name: str, recipe: str = SFT) -> dict[str, Any]:
    """The settings of a preset.

    Args:
        name: of the preset.
        recipe: of the preset.
    """
    return copy.deepcopy(_settings(name, recipe))


@cache  # the files of the package do not change, and parsing one takes longer than checking the settings of a run
def _settings(name: str, recipe: str) -> dict[str, Any]:
    settings: dict[str, Any] = yaml.safe_load(read(name, recipe).text)
    return settings


def _folder(recipe: str) -> Path:
    return FOLDER if recipe == SFT else FOLDER / recipe
