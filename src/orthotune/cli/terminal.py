"""What the terminal can show: colours, and which characters."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orthotune.text.shown_rows import Marks


def has_colours() -> bool:
    """Whether the output is a terminal with colours, and ``NO_COLOR`` (https://no-color.org) is not set.

    Example:
        >>> has_colours()
        False
    """
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def printable(text: str) -> str:
    """A text in which characters that the output cannot encode are escaped.

    Args:
        text: to print.

    Example:
        >>> printable("abc")
        'abc'
    """
    encoding = sys.stdout.encoding or "ascii"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def marks() -> Marks:
    """What marks learned tokens on this output."""
    from orthotune.text.shown_rows import ASCII, BRACKETS, COLOURED

    wanted = COLOURED if has_colours() else BRACKETS
    return wanted if printable(wanted.before + wanted.between) == wanted.before + wanted.between else ASCII
