"""The form of a recipe: its settings by theme, each with the control that fits its type, from the settings classes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from orthotune.recipes import preset
from orthotune.recipes.registry import RECIPES
from orthotune.recipes.setting_fields import SettingField, all_fields
from orthotune.recipes.setting_names import by_theme
from orthotune.studio.recipe_text import written

#: Settings that the studio decides itself: where a run goes on, and the preset, which has a control of its own.
HIDDEN = ("resume", "preset")
#: The theme that is open when the page is opened: the settings that most runs decide, in this order, and those that
#: have options of their own on the command line.
FIRST = "Most used"
MOST_USED = (
    "model", "method", "data", "instance_images", "instance_prompt", "conditions", "steps", "epochs", "learning_rate",
    "batch_size", "keep", "eval_every", "output",
)  # fmt: skip
#: Presets of the built-in models, which a recipe without a model takes.
BUILT_IN = ("text-world", "image-world", "tone-words")
#: In a list of choices, what stands for a setting that is not given.
UNSET = ""


@dataclass(frozen=True)
class Control:
    """One setting of the form.

    Attributes:
        key: the setting.
        kind: ``choice`` has a list, ``text`` takes what the command line takes after ``KEY=``.
        choices: of a list: shown text and value; the first one leaves the setting out.
        hint: shown in an empty field: the value that is used then.
        about: type, limits and meaning.
    """

    key: str
    kind: Literal["choice", "text"]
    choices: tuple[tuple[str, str], ...]
    hint: str
    about: str


def preset_of(recipe: str, values: Mapping[str, Any]) -> str | None:
    """The preset that fills in what a recipe file leaves out; None without one.

    Args:
        recipe: name in the registry.
        values: of the recipe file.

    Example:
        >>> preset_of("sft", {}), preset_of("sft", {"model": "gpt2"}), preset_of("subject", {"preset": "sdxl"})
        ('text-world', None, 'sdxl')
    """
    known = preset.names(recipe)
    if values.get("preset") in known:
        return str(values["preset"])
    built_in = next((name for name in BUILT_IN if name in known), None)
    return built_in if values.get("model", built_in) == built_in else None


def controls(recipe: str, chosen: str | None) -> dict[str, list[Control]]:
    """The controls of a recipe by theme: the most used settings, then the others in the order of its help.

    Args:
        recipe: name in the registry.
        chosen: the preset, whose values are the hints of fields that it sets; None for none.

    Example:
        >>> found = controls("sft", None)
        >>> next(one for one in found["Most used"] if one.key == "method").choices[1]
        ('oft', 'oft')
    """
    fields = {field.name: field for field in all_fields(f"orthotune.recipes.{RECIPES[recipe].settings}")}
    fields = {name: field for name, field in fields.items() if name not in HIDDEN}
    known = preset.names(recipe)
    filled: Mapping[str, Any] = preset.settings_of(chosen, recipe) if chosen in known else {}
    wanted = dict.fromkeys([*MOST_USED, *(option.key for option in RECIPES[recipe].options)])
    first = {FIRST: [name for name in wanted if name in fields]}
    themes = first | by_theme([name for name in fields if name not in wanted], f"Of {recipe}")
    return {theme: [_control(fields[name], filled, chosen) for name in names] for theme, names in themes.items()}


def presets(recipe: str) -> list[str]:
    """The presets of a recipe.

    Example:
        >>> "sdxl" in presets("subject")
        True
    """
    return preset.names(recipe)


def new_text(recipe: str) -> str:
    """The text of a recipe file without settings.

    Example:
        >>> new_text("sft")
        '# orthotune train sft THIS_FILE\\n'
    """
    return f"# orthotune train {recipe} THIS_FILE\n"


def _control(field: SettingField, filled: Mapping[str, Any], chosen: str | None) -> Control:
    if field.name == "output":
        hint = "a new folder, runs/RECIPE-METHOD"
    elif field.name in filled:
        hint = f"{written(filled[field.name])} (preset {chosen})"
    else:
        hint = {None: "required, or from a preset", "None": "not set"}.get(field.default) or _shown(str(field.default))
    options = ("true", "false") if field.kind == "bool" else field.choices
    choices = ((f"default: {hint}", UNSET), *((option, option) for option in options)) if options else ()
    return Control(field.name, "choice" if options else "text", choices, hint, f"{field.type_text}. {field.meaning}")


def _shown(default: str) -> str:
    return {"True": "true", "False": "false", "''": "empty", "{}": "none", "[]": "none"}.get(
        default, default.strip("'")
    )
