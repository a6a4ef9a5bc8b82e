"""Text from files, made fit for a terminal: it neither moves the cursor, nor sets colours, nor turns the direction."""

from __future__ import annotations

from typing import Any


def plain(value: Any) -> Any:
    """The value with everything in its texts escaped that is no printable character; keys and inner values, too.

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
