"""Escape control characters of texts from files before they are printed."""

from __future__ import annotations

from typing import Any


def plain(value: Any) -> Any:
    """``value`` as :func:`orthotune.files.plain_text.plain` escapes it.

    Example:
        >>> plain("gpt2\\x1b[2J")
        'gpt2\\\\x1b[2J'
    """
    from orthotune.files.plain_text import plain as escaped

    return escaped(value)
