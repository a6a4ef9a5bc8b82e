"""The presets: settings known to work for a model family, one YAML file each, with the reason as its first line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from orthotune.errors import RecipeError, nearest

FOLDER = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class Preset:
    """A preset's name, the reason for its values, and its text."""

    name: str
    reason: str
    text: str


def names() -> list[str]:
    """All presets, sorted.

    Example:
        >>> "llama" in names()
        True
    """
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read(name: str) -> Preset:
    """The preset called ``name``.

    Raises:
        RecipeError: there is none of that name.
    """
    if name not in names():
        close = nearest(name, names(), count=1)
        raise RecipeError(
            f"preset {name!r}",
            got="no such preset",
            needed=f"one of {', '.join(names())}",
            do=f"Did you mean {close[0]!r}?" if close else None,
        )
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    return Preset(name, text.splitlines()[0].lstrip("# ").strip(), text)


def settings_of(name: str) -> dict[str, Any]:
    """The settings that the preset ``name`` fills in."""
    settings: dict[str, Any] = yaml.safe_load(read(name).text)
    return settings
