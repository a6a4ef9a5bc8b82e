"""Numbers in a config that may hold anything."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from orthotune.errors import AdapterFileError


def number(config: Mapping[str, Any], field: str, default: float, most: float = math.inf) -> float:
    """A field as a number from 0 to ``most``; the default if it is missing or None.

    Raises:
        AdapterFileError: it is something else.

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


def whole(config: Mapping[str, Any], field: str, default: int, most: int = 1 << 31) -> int:
    """The same for a whole number.

    Raises:
        AdapterFileError: it is something else.

    Example:
        >>> whole({"r": 4}, "r", 8)
        4
    """
    value = number(config, field, default, most)
    if value != int(value):
        raise AdapterFileError(f"{field} in the adapter's config", got=repr(value), needed="a whole number")
    return int(value)
