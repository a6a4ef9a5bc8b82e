"""The types of the fields of an adapter config. A field of the wrong type is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from numbers import Real
from typing import Any


def _integer(value: Any) -> bool:
    return type(value) is int


def _number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _texts(value: Any) -> bool:
    if value is None:
        return True
    listed = isinstance(value, Collection) and not isinstance(value, (str, bytes, Mapping))
    return listed and all(isinstance(one, str) for one in value)


def _text_or_texts(value: Any) -> bool:
    return _text(value) or _texts(value)


def _indices(value: Any) -> bool:
    return value is None or _integer(value) or (isinstance(value, (list, tuple)) and all(map(_integer, value)))


def _counts(value: Any) -> bool:
    return value is None or (
        isinstance(value, Mapping) and all(isinstance(name, str) and _integer(count) for name, count in value.items())
    )


def _mapping(value: Any) -> bool:
    return value is None or isinstance(value, Mapping)


FLAG, NAMES = "true or false", "a list of names, or none"
#: field -> check, and description for messages; fields of other versions and tools are not checked
TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (_integer, "a whole number"),
    "oft_block_size": (lambda value: value is None or _integer(value), "a whole number"),
    "num_cayley_neumann_terms": (_integer, "a whole number"),
    "format_version": (_integer, "a whole number"),
    "module_dropout": (_number, "a number"),
    "eps": (_number, "a number"),
    "transform": (_text, "a name"),
    "variant": (_text, "a name"),
    "factors": (_integer, "a whole number"),
    "coft": (_flag, FLAG),
    "block_share": (_flag, FLAG),
    "use_cayley_neumann": (_flag, FLAG),
    "magnitude": (_flag, FLAG),
    "scaled": (_flag, FLAG),
    "fan_in_fan_out": (_flag, FLAG),
    "init_weights": (_flag, FLAG),
    "inference_mode": (_flag, FLAG),
    "target_modules": (_text_or_texts, "names, or one pattern"),
    "exclude_modules": (_text_or_texts, "names, or one pattern"),
    "layers_pattern": (_text_or_texts, "names"),
    "layers_to_transform": (_indices, "whole numbers"),
    "modules_to_save": (_texts, NAMES),
    "target_parameters": (_texts, NAMES),
    "needs_orthotune_for": (_texts, NAMES),
    "rank_pattern": (_counts, "whole numbers by name"),
    "block_size_pattern": (_counts, "whole numbers by name"),
    "alpha_pattern": (_mapping, "numbers by name"),
    "auto_mapping": (_mapping, "names by kind"),
    "peft_version": (_text, "a version"),
    "task_type": (_text, "a name"),
    "revision": (_text, "a name"),
    "base_model_name_or_path": (_text, "a name"),
}


def fault(config: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Name, value and expected type of the first field of a config with a wrong type; None if there is none.

    Example:
        >>> fault({"r": "8", "coft": True})
        ('r', "'8'", 'a whole number')
    """
    for field, value in config.items():
        fits, needed = TYPES.get(field, (None, ""))
        if fits is not None and not fits(value):
            return field, ascii(value)[:80], needed
    return None
