"""What the fields of an adapter's config may hold; a word where a number belongs is refused, not taken for true."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from numbers import Real
from typing import Any


def _whole(value: Any) -> bool:
    return type(value) is int


def _number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _word(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _words(value: Any) -> bool:
    if value is None:
        return True
    listed = isinstance(value, Collection) and not isinstance(value, (str, bytes, Mapping))
    return listed and all(isinstance(one, str) for one in value)


def _word_or_words(value: Any) -> bool:
    return _word(value) or _words(value)


def _indices(value: Any) -> bool:
    return value is None or _whole(value) or (isinstance(value, (list, tuple)) and all(map(_whole, value)))


def _counts(value: Any) -> bool:
    return value is None or (
        isinstance(value, Mapping) and all(isinstance(name, str) and _whole(count) for name, count in value.items())
    )


def _mapping(value: Any) -> bool:
    return value is None or isinstance(value, Mapping)


FLAG, WORDS = "true or false", "a list of names, or none"
#: field -> what it must be, and that in words; fields of other versions and tools are left alone
TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (_whole, "a whole number"),
    "oft_block_size": (lambda value: value is None or _whole(value), "a whole number"),
    "num_cayley_neumann_terms": (_whole, "a whole number"),
    "format_version": (_whole, "a whole number"),
    "module_dropout": (_number, "a number"),
    "eps": (_number, "a number"),
    "coft": (_flag, FLAG),
    "block_share": (_flag, FLAG),
    "use_cayley_neumann": (_flag, FLAG),
    "magnitude": (_flag, FLAG),
    "scaled": (_flag, FLAG),
    "fan_in_fan_out": (_flag, FLAG),
    "init_weights": (_flag, FLAG),
    "inference_mode": (_flag, FLAG),
    "target_modules": (_word_or_words, "names, or one pattern"),
    "exclude_modules": (_word_or_words, "names, or one pattern"),
    "layers_pattern": (_word_or_words, "names"),
    "layers_to_transform": (_indices, "whole numbers"),
    "modules_to_save": (_words, WORDS),
    "target_parameters": (_words, WORDS),
    "needs_orthotune_for": (_words, WORDS),
    "rank_pattern": (_counts, "whole numbers by name"),
    "block_size_pattern": (_counts, "whole numbers by name"),
    "alpha_pattern": (_mapping, "numbers by name"),
    "auto_mapping": (_mapping, "names by kind"),
    "peft_version": (_word, "a version"),
    "task_type": (_word, "a name"),
    "revision": (_word, "a name"),
    "base_model_name_or_path": (_word, "a name"),
}


def fault(config: Mapping[str, Any]) -> tuple[str, str, str] | None:
    """Field, what it holds and what it must be, for the first field of a config that holds something else; or None.

    Example:
        >>> fault({"r": "8", "coft": True})
        ('r', "'8'", 'a whole number')
    """
    for field, value in config.items():
        fits, needed = TYPES.get(field, (None, ""))
        if fits is not None and not fits(value):
            return field, ascii(value)[:80], needed
    return None
