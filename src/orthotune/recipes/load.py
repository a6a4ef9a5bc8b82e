"""Read settings from a recipe file and ``key=value`` overrides. Errors name the line of the file."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from orthotune.errors import RecipeError
from orthotune.recipes.method_settings import SettingError

Settings = TypeVar("Settings", bound=BaseModel)
#: keys of other trainers (kohya, OneTrainer, ai-toolkit, transformers) -> the keys that mean the same here
OTHER_WORDS: dict[str, tuple[str, ...]] = {
    "lr": ("learning_rate",), "unet_lr": ("learning_rate",), "epochs": ("steps",), "num_epochs": ("steps",),
    "epoch": ("steps",), "num_train_epochs": ("epochs", "steps"), "max_train_steps": ("steps",),
    "max_steps": ("steps",), "repeats": ("steps",), "num_repeats": ("steps",), "network_dim": ("block_size",),
    "dim": ("block_size",), "rank": ("lora_rank",), "alpha": ("lora_alpha",), "network_alpha": ("lora_alpha",),
    "lora_r": ("lora_rank",), "lr_scheduler": ("schedule",), "lr_scheduler_type": ("schedule",),
    "scheduler": ("schedule",), "lr_warmup_steps": ("warmup",), "warmup_steps": ("warmup",),
    "warmup_ratio": ("warmup",), "train_batch_size": ("batch_size",), "per_device_train_batch_size": ("batch_size",),
    "gradient_accumulation_steps": ("gradient_accumulation",), "min_snr_gamma": ("min_snr",),
    "base_model": ("model",), "pretrained_model_name_or_path": ("model",), "model_name_or_path": ("model",),
    "output_dir": ("output",), "output_name": ("output",), "save_every_n_steps": ("save_every",),
    "instance_data_dir": ("instance_images",), "class_data_dir": ("class_images",), "train_data_dir": ("data",),
    "ema_decay": ("ema",), "dtype": ("mixed_precision",), "precision": ("mixed_precision",),
    "train_te": ("train_text_encoder",), "enable_bucket": ("buckets",), "side": ("made_for", "rotation"),
}  # fmt: skip
#: how alike a misspelt key and a known key are at least; below this it may be another thing
ALIKE = 0.7
#: most faults of a recipe that a message lists; the others are counted
LISTED = 10


@dataclass
class Given:
    """The given settings and their origin: ``places`` maps a dotted key to the line of the file or the command line."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)

    def place(self, key: str) -> str:
        """The origin of ``key``, or of the mapping that contains it."""
        return self.places.get(key) or self.places.get(key.split(".")[0]) or "settings"


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
    return check(kind, read(recipe, overrides))


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
    unknown = [str(key) for key in given.values if key not in kind.model_fields]  # YAML's keys may be numbers or dates
    faults = [unknown_key(given, key, kind.model_fields) for key in unknown]
    try:
        checked = kind(**{key: value for key, value in given.values.items() if key in kind.model_fields})
    except ValidationError as found:
        # If a key is unknown, missing and contradicting settings may follow from the misspelling.
        sure = [fault for fault in found.errors() if not faults or fault["type"] not in ("missing", "value_error")]
        faults += [error for fault in sure for error in _errors(kind, given, fault)]
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


def unknown_key(given: Given, key: str, known: Iterable[str]) -> RecipeError:
    """The error for an unknown key.

    Args:
        given: the settings and their origin.
        key: the unknown key.
        known: the known keys.
    """
    known = list(known)
    meant = next((one for one in OTHER_WORDS.get(key.lower(), ()) if one in known), None)
    close = [meant] if meant else difflib.get_close_matches(key, known, n=1, cutoff=ALIKE)
    do = f"Did you mean {close[0]!r}?" if close else _listing(known)
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
    given.places[key] = "command line"
    if above:
        given.places.setdefault(above[0], "command line")


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
