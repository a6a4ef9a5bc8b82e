"""Names in messages and on disk: shortened lists, text without control characters, names that lead nowhere else."""

from __future__ import annotations

import re
from collections.abc import Iterable

#: Names that Windows gives to devices, with any ending.
_DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", re.IGNORECASE)


def shortened(names: Iterable[str], count: int = 3) -> str:
    """The first names and how many more there are.

    Args:
        names: any number of them.
        count: how many are written out.

    Example:
        >>> shortened(["a", "b", "c"], count=2)
        'a, b and 1 more'
    """
    names = list(names)
    text = ", ".join(names[:count])
    return text if len(names) <= count else f"{text} and {len(names) - count} more"


def escaped(names: Iterable[str], count: int = 3) -> str:
    """As :func:`shortened`, for names from a file, which may hold anything: what is no plain text is escaped.

    Args:
        names: any number of them; of each at most 120 characters are shown.
        count: how many are written out.

    Example:
        >>> escaped(["a\\x1b[2J"])
        'a\\\\x1b[2J'
    """
    return shortened([ascii(name)[1:-1][:120] for name in names], count)


def is_file_name(name: object) -> bool:
    """Whether a value is the name of a file in a folder on every system: no path, no drive, no device.

    Example:
        >>> is_file_name("a.json"), is_file_name("../a.json"), is_file_name("C:a"), is_file_name("nul.txt")
        (True, False, False, False)
    """
    if not isinstance(name, str) or name in ("", ".", "..") or _DEVICES.fullmatch(name):
        return False
    return not any(letter in name for letter in "/\\:\0")
