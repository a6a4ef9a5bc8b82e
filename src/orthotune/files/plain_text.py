"""Escape control characters of texts from files, so that they cannot move a terminal's cursor or change its colours."""

from __future__ import annotations

from typing import Any


def plain(value: Any) -> Any:
    """``value`` with all unprintable characters of its texts escaped, in keys and in nested values as well.

    Example:
        >>> plain({"base": "gpt2\\x1b[2J"})
        {'base': 'gpt2\\\\x1b[2J'}
    """
    if isinstance(value, str):
        return "".join(mark if mark.isprintable() or mark == "\n" else ascii(mark)[1:-1] for mark in value)
    if isinstance(value, dict):
        return {plain(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(inner) for inner in value)
    return value
