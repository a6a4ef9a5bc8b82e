"""Read settings from a recipe file and ``key=value`` overrides. Errors name the line of the file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from orthotune.errors import RecipeError
from orthotune.files.json_file import read_json
from orthotune.files.run_adapter import FINISHED, STARTED
from orthotune.recipes import preset
from orthotune.recipes.method_settings import SettingError
from orthotune.recipes.setting_names import meant
from orthotune.runs.directory import another_recipe

Settings = TypeVar("Settings", bound=BaseModel)
#: the place of a setting that is no line of a file
COMMAND_LINE = "command line"
#: most faults of a recipe that a message lists; the others are counted
LISTED = 10


@dataclass
class Given:
    """The given settings and their origin: ``places`` maps a dotted key to the line of the file or the command line."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)

    def place(self, key: str) -> str:
        """The origin of ``key``, or of the mapping that contains it."""
        nested = key.partition(".")[2]  # a field of the trainer's config may have been a key of its own
        return self.places.get(key) or self.places.get(nested) or self.places.get(key.split(".")[0]) or "settings"


def load_settings(kind: type[Settings], recipe: Path | None = None, overrides: Sequence[str] = ()) -> Settings:
    """Read and check settings.

    Args:
        kind: the class of the settings.
        recipe: a YAML file; None for none.
        overrides: such as ``"steps=50"``, which replace the values of the file.

    Raises:
        RecipeError: unreadable file, unknown key, wrong type or contradiction. The message names the file and the line.

    Example:
        >>> from orthotune.recipes.settings import SFTSettings
        >>> load_settings(SFTSettings, None, ["method=lora", "steps=50"]).steps
        50
    """
    return check(kind, with_settings_of_run(kind, read(recipe, overrides)))


def with_settings_of_run(kind: type[BaseModel], given: Given) -> Given:
    """``given``, and for ``resume=auto`` the settings of the run in the output, which need not be given again.

    Args:
        kind: the class of the settings.
        given: what the user wrote; it goes before the settings of the run.

    Raises:
        RecipeError: the run there is one of another recipe.
    """
    values = given.values
    recipe = getattr(kind, "recipe", None)
    if recipe is None or values.get("resume", "never") == "never" or "resume" not in kind.model_fields:
        return given
    output = Path(str(values.get("output") or Path("runs") / f"{recipe}-{values.get('method', 'oft')}"))
    if not (output / STARTED).is_file():
        return given
    before = read_json(output / STARTED)
    there = before.pop("recipe", None) or _recipe_of(output) or recipe
    if there != recipe:
        raise another_recipe(output, there, recipe)
    if unknown := [key for key in before if key not in kind.model_fields]:
        raise RecipeError(
            f"resume in {output}", got=f"a run with settings that {recipe} does not have: {', '.join(unknown[:3])}",
            needed=f"a run of `orthotune train {recipe}`",
        )  # fmt: skip
    for one, other in getattr(kind, "mutually_exclusive", ()):
        for mine, its in ((one, other), (other, one)):
            if mine in values and its in before and mine not in before:
                del before[its]
    # What the record does not have was at the default of its time, which neither a preset nor today's default replaces.
    formerly, only_for = getattr(kind, "formerly", {}), getattr(kind, "only_for", {})
    method = before.get("method", "oft")
    usual = {
        key: formerly.get(key, kind.model_fields[key].default)
        for key in getattr(kind, "newer", ())
        if key not in before
        and method in only_for.get(key, (method,))
        and (key in formerly or key in _preset_keys(before, recipe))
    }
    return Given(usual | before | values, given.places)


def _preset_keys(before: Mapping[str, Any], recipe: str) -> Iterable[str]:
    name = before.get("preset")
    return preset.settings_of(name, recipe) if isinstance(name, str) else ()


def _recipe_of(output: Path) -> str | None:
    """The recipe of a finished run; those of earlier releases have it in their record alone."""
    path = output / FINISHED
    return str(read_json(path).get("recipe")) if path.is_file() else None


def read(recipe: Path | None, overrides: Iterable[str]) -> Given:
    """Read settings without checking keys and values.

    Args:
        recipe: a YAML file; None for none.
        overrides: such as ``"steps=50"``, which replace the values of the file.

    Raises:
        RecipeError: the file is unreadable or not YAML, or an override has no key or no YAML value.
    """
    given = _read_file(recipe) if recipe else Given()
    for pair in overrides:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise RecipeError(
                f"argument {pair!r}",
                needed="a recipe file that exists, or KEY=VALUE",
                do="Write for instance steps=200",
            )
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as fault:
            raise RecipeError(f"value of {key!r} on the command line", got=text, needed="a YAML value") from fault
        _put(given, key, value)
    return given


def check(kind: type[Settings], given: Given) -> Settings:
    """Check settings.

    Args:
        kind: the class of the settings.
        given: the settings and their origin.

    Raises:
        RecipeError: with all faults. Contradictions between settings are reported only if all keys are known and all
            values have the right type.
    """
    if "made_for" in kind.model_fields and "for" in given.values:
        given.values["made_for"] = given.values.pop("for")
        given.places["made_for"] = given.places.get("for", "settings")
    known, passed = _known(kind, given.values)
    unknown = [str(key) for key in given.values if key not in known]  # YAML's keys may be numbers or dates
    faults = [unknown_key(given, key, kind.model_fields, passed) for key in unknown]
    try:
        checked = kind(**{key: value for key, value in given.values.items() if key in known})
    except ValidationError as found:
        # If a key is unknown, missing and contradicting settings may follow from the misspelling.
        sure = [fault for fault in found.errors() if not faults or fault["type"] not in ("missing", "value_error")]
        faults += [error for fault in sure for error in _errors(kind, given, fault)]
    if not faults:
        return checked
    if len(faults) == 1:
        raise faults[0]
    raise _joined(faults, kind)


def _known(kind: type[BaseModel], values: Iterable[Any]) -> tuple[set[str], Sequence[str]]:
    """The keys that can be checked, and those of them that are no settings and passed to a trainer's config."""
    own = set(kind.model_fields)
    if not hasattr(kind, "passed_keys") or own.issuperset(values):
        return own, ()  # without an import of the trainer's config
    passed = kind.passed_keys()
    return {*own, *passed, *kind.decided_keys()}, passed  # type: ignore[attr-defined]


def _joined(faults: list[RecipeError], kind: type[BaseModel]) -> RecipeError:
    """One error for several; the known keys are listed once."""
    listing = _listing(kind.model_fields)
    lines = [f"  {fault}".removesuffix(f" {listing}.") for fault in faults[:LISTED]]
    if len(faults) > LISTED:
        lines.append(f"  and {len(faults) - LISTED} more")
    if any(fault.do == listing for fault in faults):
        lines.append(listing)
    return RecipeError("\n".join([f"{len(faults)} settings cannot be used:", *lines]))


def _listing(known: Iterable[str]) -> str:
    return f"Known keys: {', '.join(sorted(known))}"


def unknown_key(given: Given, key: str, known: Iterable[str], passed: Iterable[str] = ()) -> RecipeError:
    """The error for an unknown key.

    Args:
        given: the settings and their origin.
        key: the unknown key.
        known: the known keys.
        passed: further keys that may be meant, too many to list.
    """
    close = meant(key, [*known, *passed])
    do = f"Did you mean {close!r}?" if close else _listing(known)
    return RecipeError(f"{given.place(key)}: unknown key {key!r}", do=do)


def _read_file(path: Path) -> Given:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        raise RecipeError(f"recipe {path}", got=_reason(fault), needed="a readable YAML file") from fault
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as fault:  # ValueError: a date that does not exist
        mark = getattr(fault, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise RecipeError(f"{where}: not YAML", got=str(getattr(fault, "problem", fault))) from fault
    if values is None:
        return Given()
    if not isinstance(values, dict):
        raise RecipeError(f"recipe {path}", got=type(values).__name__, needed="lines of `key: value`")
    given = Given(values)
    try:
        _note_lines(tree, "", path, given.places)
    except RecursionError as fault:
        raise RecipeError(f"recipe {path}", got="an alias that contains itself") from fault
    return given


def _note_lines(tree: yaml.MappingNode, above: str, path: Path, places: dict[str, str]) -> None:
    for key, value in tree.value:
        name = f"{above}{key.value}"
        if name in places:
            raise RecipeError(f"{path}, line {key.start_mark.line + 1}: {name!r} again", got=f"first at {places[name]}")
        places[name] = f"{path}, line {key.start_mark.line + 1}"
        if isinstance(value, yaml.MappingNode):
            _note_lines(value, f"{name}.", path, places)


def _put(given: Given, key: str, value: Any) -> None:
    """Set a dotted key, such as ``rotation.side``, replacing the value of the file."""
    *above, last = key.split(".")
    mapping = given.values
    for part in above:
        if not isinstance(mapping.get(part), dict):
            mapping[part] = {}
        mapping = mapping[part]
    mapping[last] = value
    given.places[key] = COMMAND_LINE
    if above:
        given.places.setdefault(above[0], COMMAND_LINE)


def _errors(kind: type[BaseModel], given: Given, fault: Any) -> list[RecipeError]:
    cause = fault.get("ctx", {}).get("error")
    if isinstance(cause, SettingError):
        return [
            RecipeError(f"{given.place(one.key)}: {one.contradiction}", do=one.do) for one in (cause, *cause.others)
        ]
    if isinstance(cause, RecipeError):
        return [cause]
    key = str(fault["loc"][0]) if fault["loc"] else ""
    about = kind.model_fields[key].description if key in kind.model_fields else None
    if fault["type"] == "missing":
        return [RecipeError(f"{key} is missing", needed=about, do=f"Write {key}: in the recipe, or {key}=VALUE")]
    dotted = ".".join(str(part) for part in fault["loc"])
    needed = fault["msg"].replace("Input should be", "").strip()
    return [RecipeError(f"{given.place(dotted)}: {key}={fault['input']!r}", needed=needed, do=about)]


def _reason(fault: Exception) -> str:
    return (getattr(fault, "strerror", None) or str(fault)).lower()
