"""Numbers and names formatted for readers of the page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

MISSING = "–"
#: Columns whose name alone would not say what they are.
SPOKEN = {"held_out_loss": "loss on held-out images", "old_held_out_loss": "loss on held-out class images"}


def loss(value: Any) -> str:
    """Nats per token with three decimals.

    Example:
        >>> loss(2.34567), loss(None)
        ('2.346', '–')
    """
    return f"{value:.3f}" if _is_number(value) else MISSING


def change(value: Any) -> str:
    """A signed difference in nats per token; a value that rounds to zero has no sign.

    Example:
        >>> change(0.4126), change(-0.0001)
        ('+0.413', '0.000')
    """
    if not _is_number(value):
        return MISSING
    return "0.000" if abs(value) < 0.0005 else f"{value:+.3f}".replace("-", "−")


def perplexity(value: Any) -> str:
    """The perplexity of a loss in nats per token.

    Example:
        >>> perplexity(3.0), perplexity(7.64)
        ('20.1', '2,080')
    """
    if not _is_number(value) or value > 20:
        return MISSING
    return f"{math.exp(value):,.1f}" if value < 4.6 else f"{math.exp(value):,.0f}"


def small(value: Any) -> str:
    """A number in scientific notation with two digits.

    Example:
        >>> small(3.2e-7)
        '3.2e-07'
    """
    return f"{value:.1e}" if _is_number(value) else MISSING


def count(value: Any) -> str:
    """A whole number with separated thousands.

    Example:
        >>> count(2164416)
        '2,164,416'
    """
    return f"{value:,}" if isinstance(value, int) else MISSING


def duration(seconds: Any) -> str:
    """A duration in seconds as readable text.

    Example:
        >>> duration(75.2), duration(4000)
        ('1 min 15 s', '1 h 6 min')
    """
    if not _is_number(seconds):
        return MISSING
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def plain(value: Any) -> str:
    """A setting's value on one line.

    Example:
        >>> plain(["q_proj", "v_proj"]), plain(None), plain(True)
        ('q_proj, v_proj', '–', 'yes')
    """
    if value is None or value == {} or value == []:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {plain(item)}" for key, item in value.items())
    return str(value)


def spoken(name: Any) -> str:
    """A column's name as readable text.

    Example:
        >>> spoken("validation_mask_iou")
        'mask iou (validation)'
    """
    if name in SPOKEN:
        return SPOKEN[name]
    part, found, rest = str(name).partition("_")
    words = f"{rest} ({part})" if found and part in ("validation", "test") else str(name)
    return words.replace("_", " ")


def figure(value: Any) -> str:
    """The value of a table cell whose column is not known in advance: a score, a count or a text.

    Example:
        >>> figure(0.91666), figure(2.1e-7), figure(103168), figure(None), figure("oft")
        ('0.917', '2.1e-07', '103,168', '–', 'oft')
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return plain(value)
    if not math.isfinite(value):
        return MISSING
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.1e}" if value and abs(value) < 5e-4 else f"{value:.3f}".replace("-", "−")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
