"""The prefix that PEFT puts before module names."""

from __future__ import annotations

PREFIX = "base_model.model."


def bare(name: str) -> str:
    """The name without the prefix of PEFT.

    Example:
        >>> bare("base_model.model.lin")
        'lin'
    """
    return name.removeprefix(PREFIX)
