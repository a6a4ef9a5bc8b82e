"""What PEFT puts before the name of a module, and takes away again."""

from __future__ import annotations

PREFIX = "base_model.model."


def bare(name: str) -> str:
    """The name without PEFT's own prefix.

    Example:
        >>> bare("base_model.model.lin")
        'lin'
    """
    return name.removeprefix(PREFIX)
