"""Names in messages and on disk: shortened lists, escaped text, and a check for plain file names."""

from __future__ import annotations

import re
from collections.abc import Iterable

#: Device names of Windows, with any suffix.
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)


def shortened(names: Iterable[str], count: int = 3) -> str:
    """The first names and the number of further names.

    Args:
        names: any number of names.
        count: how many names are written out.

    Example:
        >>> shortened(["a", "b", "c"], count=2)
        'a, b and 1 more'
    """
    names = list(names)
    text = ", ".join(names[:count])
    return text if len(names) <= count else f"{text} and {len(names) - count} more"


def escaped(names: Iterable[str], count: int = 3) -> str:
    """As :func:`shortened`, for names from a file: control characters and non-ASCII characters are escaped.

    Args:
        names: any number of names; at most 120 characters of each are shown.
        count: how many names are written out.

    Example:
        >>> escaped(["a\\x1b[2J"])
        'a\\\\x1b[2J'
    """
    return shortened([ascii(name)[1:-1][:120] for name in names], count)


def is_file_name(name: object) -> bool:
    """Whether a value is a plain file name on every system: no path, no drive, no device.

    Example:
        >>> is_file_name("a.json"), is_file_name("../a.json"), is_file_name("C:a"), is_file_name("nul.txt")
        (True, False, False, False)
    """
    if not isinstance(name, str) or name in ("", ".", "..") or _DEVICES.fullmatch(name):
        return False
    return not any(letter in name for letter in "/\\:\0")
