"""Read numbers from a config, whose fields may have any type."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from orthotune.errors import AdapterFileError


def number(config: Mapping[str, Any], field: str, default: float, most: float = math.inf) -> float:
    """A field as a number from 0 to ``most``.

    Args:
        config: the fields.
        field: name of the field.
        default: the value if the field is missing or None.
        most: the largest value.

    Raises:
        AdapterFileError: the field has another value.

    Example:
        >>> number({"r": 4}, "r", 0), number({}, "eps", 6e-5)
        (4, 6e-05)
    """
    value = config.get(field)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most or math.isinf(value):
        raise AdapterFileError(
            f"{field} in the adapter's config", got=repr(value)[:80], needed=f"a number from 0 to {most:g}"
        )
    return value


def integer(config: Mapping[str, Any], field: str, default: int, most: int = 1 << 31) -> int:
    """A field as an integer from 0 to ``most``.

    Args:
        config: the fields.
        field: name of the field.
        default: the value if the field is missing or None.
        most: the largest value.

    Raises:
        AdapterFileError: the field has another value.

    Example:
        >>> integer({"r": 4}, "r", 8)
        4
    """
    value = number(config, field, default, most)
    if value != int(value):
        raise AdapterFileError(f"{field} in the adapter's config", got=repr(value), needed="a whole number")
    return int(value)
