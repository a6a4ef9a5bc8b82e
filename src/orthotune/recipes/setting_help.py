"""The settings of a recipe as text for a terminal."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from orthotune.recipes.registry import Recipe
from orthotune.recipes.setting_fields import SettingField, all_fields
from orthotune.recipes.setting_names import by_theme, meant

PRESETS = Path(__file__).parent / "presets"


def overview(recipe: Recipe) -> str:
    """The names of a recipe's settings by theme, one theme a paragraph.

    Example:
        >>> from orthotune.recipes.registry import RECIPES
        >>> "learning_rate" in overview(RECIPES["sft"])
        True
    """
    fields = _fields(recipe)
    lines = ["Settings (KEY=VALUE):"]
    for theme, names in by_theme(fields, f"Of {recipe.name}").items():
        lines += _wrapped(f"{theme}: {', '.join(names)}", "  ", "    ")
    lines.append(
        f"orthotune train {recipe.name} --keys explains them all, orthotune train {recipe.name} KEY --keys one."
    )
    return "\n".join(lines)


def listing(recipe: Recipe, words: Sequence[str] = ()) -> str:
    """Every setting of a recipe with its type, default, meaning and the presets that set it.

    Args:
        recipe: the recipe.
        words: show only settings whose names contain one of these, or that one of these means.

    Example:
        >>> from orthotune.recipes.registry import RECIPES
        >>> print(listing(RECIPES["sft"], ["lr"]).splitlines()[0])
        Training
    """
    fields, presets = _fields(recipe), _presets(recipe)
    if words:
        wanted = {name for name in fields for word in words if word.lower().replace("-", "_") in name}
        if not wanted and (further := _of_trainer(recipe, words)):
            entries = (_entry(field, presets.get(name, [])) for name, field in further.items())
            return "\n".join(["Passed on to the trainer", *entries])
        wanted |= {name for word in words if (name := meant(word, fields))}
        fields = {name: field for name, field in fields.items() if name in wanted}
        if not fields:
            return f"No setting of {recipe.name} is called {' or '.join(words)}."
    paragraphs = []
    for theme, names in by_theme(fields, f"Of {recipe.name}").items():
        paragraphs.append("\n".join([theme, *(_entry(fields[name], presets.get(name, [])) for name in names)]))
    return "\n\n".join(paragraphs)


def _of_trainer(recipe: Recipe, words: Sequence[str]) -> dict[str, SettingField]:
    """The fields of a trainer's config that a recipe passes on, of those whose names contain one of ``words``."""
    if "trainer" not in _fields(recipe):
        return {}
    kind: Any = recipe.settings_class()
    from orthotune.recipes.trainer_keys import fields_of

    wanted = [name for name in kind.passed_keys() if any(word.lower().replace("-", "_") in name for word in words)]
    known = fields_of(kind.trainer_config)
    return {
        name: SettingField(
            name=name,
            choices=(),
            kind=str(getattr(known[name].type, "__name__", known[name].type)),
            limits="",
            owner=kind.trainer_config,
            default=None if known[name].default is MISSING else repr(known[name].default),
            meaning=str(known[name].metadata.get("help") or ""),
        )
        for name in sorted(wanted)
    }


def _entry(field: SettingField, presets: Sequence[str]) -> str:
    default = "required, or from the preset" if field.default is None else f"default {_shown(field.default)}"
    lines = [f"  {field.name}  ({field.type_text}; {default})"]
    texts = [field.meaning] * bool(field.meaning) + ([f"Set by presets: {', '.join(presets)}."] if presets else [])
    for text in texts:
        lines += _wrapped(text, "      ", "      ")
    return "\n".join(lines)


def _shown(default: str) -> str:
    return {"None": "none", "True": "true", "False": "false"}.get(default, default.strip("'"))


def _fields(recipe: Recipe) -> dict[str, SettingField]:
    return {field.name: field for field in all_fields(f"orthotune.recipes.{recipe.settings}")}


def _presets(recipe: Recipe) -> dict[str, list[str]]:
    """Setting -> the presets of the recipe that set it. Read line by line: a parser takes longer to import."""
    found: dict[str, list[str]] = {}
    folder = PRESETS if recipe.name == "sft" else PRESETS / recipe.name
    for path in sorted(folder.glob("*.yaml")):
        for key in dict.fromkeys(re.findall(r"^(\w+):", path.read_text(encoding="utf-8"), flags=re.MULTILINE)):
            found.setdefault(key, []).append(path.stem)
    return found


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    width = max(60, min(shutil.get_terminal_size().columns, 110))
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=rest, break_on_hyphens=False)
