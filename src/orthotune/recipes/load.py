"""Read a recipe file and ``key=value`` overrides into settings; every complaint names the line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from orthotune.errors import RecipeError, nearest
from orthotune.recipes.method_settings import SettingError

Settings = TypeVar("Settings", bound=BaseModel)
#: faults of one recipe that are named; of more only the number
LISTED = 10


@dataclass
class Said:
    """What was said, and where: ``places`` maps a dotted key to the file's line or the command line."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)

    def place(self, key: str) -> str:
        """Where ``key``, or what it lies in, was written."""
        return self.places.get(key) or self.places.get(key.split(".")[0]) or "settings"


def load_settings(kind: type[Settings], recipe: Path | None = None, overrides: Sequence[str] = ()) -> Settings:
    """The settings in the YAML file ``recipe``, changed by ``overrides`` such as ``"steps=50"``.

    Raises:
        RecipeError: unreadable file, unknown key, wrong type or contradiction, with the file and its line.

    Example:
        >>> from orthotune.recipes.settings import SFTSettings
        >>> load_settings(SFTSettings, None, ["method=lora", "steps=50"]).steps
        50
    """
    return check(kind, read(recipe, overrides))


def read(recipe: Path | None, overrides: Iterable[str]) -> Said:
    """What the file and the command line say, before any check of keys and values."""
    said = _read_file(recipe) if recipe else Said()
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
        _put(said, key, value)
    return said


def check(kind: type[Settings], said: Said) -> Settings:
    """The checked settings.

    Args:
        kind: the class of the settings.
        said: keys and values, and where each was written.

    Raises:
        RecipeError: every fault that was found. Contradictions between settings are looked for when all keys are known
            and all values have the right type.
    """
    unknown = [str(key) for key in said.values if key not in kind.model_fields]  # YAML's keys may be numbers or dates
    faults = [unknown_key(said, key, kind.model_fields) for key in unknown]
    try:
        checked = kind(**{key: value for key, value in said.values.items() if key in kind.model_fields})
    except ValidationError as found:
        # Beside a key that is unknown, what is missing or contradicts may come of the misspelling.
        sure = [fault for fault in found.errors() if not faults or fault["type"] not in ("missing", "value_error")]
        faults += [worded for fault in sure for worded in _worded(kind, said, fault)]
    if not faults:
        return checked
    if len(faults) == 1:
        raise faults[0]
    raise _joined(faults, kind)


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


def unknown_key(said: Said, key: str, known: Iterable[str]) -> RecipeError:
    """The error for a key that no setting has."""
    close = nearest(key, known, count=1)
    do = f"Did you mean {close[0]!r}?" if close else _listing(known)
    return RecipeError(f"{said.place(key)}: unknown key {key!r}", do=do)


def _read_file(path: Path) -> Said:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as fault:
        raise RecipeError(f"recipe {path}", got=_reason(fault), needed="a readable YAML file") from fault
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as fault:  # ValueError: a date that there is not
        mark = getattr(fault, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        raise RecipeError(f"{where}: not YAML", got=str(getattr(fault, "problem", fault))) from fault
    if values is None:
        return Said()
    if not isinstance(values, dict):
        raise RecipeError(f"recipe {path}", got=type(values).__name__, needed="lines of `key: value`")
    said = Said(values)
    try:
        _note_lines(tree, "", path, said.places)
    except RecursionError as fault:
        raise RecipeError(f"recipe {path}", got="an alias inside of what it names") from fault
    return said


def _note_lines(tree: yaml.MappingNode, above: str, path: Path, places: dict[str, str]) -> None:
    for key, value in tree.value:
        name = f"{above}{key.value}"
        if name in places:
            raise RecipeError(f"{path}, line {key.start_mark.line + 1}: {name!r} again", got=f"first at {places[name]}")
        places[name] = f"{path}, line {key.start_mark.line + 1}"
        if isinstance(value, yaml.MappingNode):
            _note_lines(value, f"{name}.", path, places)


def _put(said: Said, key: str, value: Any) -> None:
    """Set a dotted key, as ``rotation.side``, over what the file says."""
    *above, last = key.split(".")
    room = said.values
    for part in above:
        if not isinstance(room.get(part), dict):
            room[part] = {}
        room = room[part]
    room[last] = value
    said.places[key] = "command line"
    if above:
        said.places.setdefault(above[0], "command line")


def _worded(kind: type[BaseModel], said: Said, fault: Any) -> list[RecipeError]:
    cause = fault.get("ctx", {}).get("error")
    if isinstance(cause, SettingError):
        return [RecipeError(f"{said.place(one.key)}: {one.said}", do=one.do) for one in (cause, *cause.others)]
    if isinstance(cause, RecipeError):
        return [cause]
    key = str(fault["loc"][0]) if fault["loc"] else ""
    about = kind.model_fields[key].description if key in kind.model_fields else None
    if fault["type"] == "missing":
        return [RecipeError(f"{key} is missing", needed=about, do=f"Write {key}: in the recipe, or {key}=VALUE")]
    dotted = ".".join(str(part) for part in fault["loc"])
    needed = fault["msg"].replace("Input should be", "").strip()
    return [RecipeError(f"{said.place(dotted)}: {key}={fault['input']!r}", needed=needed, do=about)]


def _reason(fault: Exception) -> str:
    return (getattr(fault, "strerror", None) or str(fault)).lower()
