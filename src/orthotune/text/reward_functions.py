"""The built-in rewards: an exact answer, a number, a format, a length. Each looks at one completion."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence

_NUMBER = re.compile(r"(?:[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+)(?:[eE][-+]?\d+\b)?")


def is_exact(completion: str, answer: str) -> bool:
    """Whether a completion, or its first line, is the answer.

    Upper and lower case, accents of another encoding, the number of spaces, quotation marks around and a full stop at
    the end do not count; two numbers are equal by value.

    Args:
        completion: the text that a model wrote.
        answer: the expected text.

    Example:
        >>> is_exact(' "Paris."', "paris"), is_exact("1,000", "1000.0"), is_exact("about 5", "5")
        (True, True, False)
    """
    wanted = normalised(answer)
    lines = completion.strip().splitlines() or [""]
    return any(normalised(text) == wanted for text in (completion, lines[0]))


def normalised(text: str) -> str:
    """A text as exact answers are compared: a number by its value, other texts without what does not count.

    Args:
        text: an answer, or a part of a completion.

    Example:
        >>> normalised("  The  End. "), normalised("+1,250.50")
        ('the end', '1250.5')
    """
    text = re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text)).strip()
    for _ in range(2):  # the full stop stands inside or outside of the quotation marks
        text = text.strip("\"'“”‘’`*$").removesuffix(".").strip()
    if _NUMBER.fullmatch(text):
        return repr(_value(text)).removesuffix(".0")
    return text.casefold()


def last_number(text: str) -> float | None:
    """The last number in a text; None where there is none.

    Args:
        text: a completion, which may explain before it answers.

    Example:
        >>> last_number("17 + 25 = 42."), last_number("no idea")
        (42.0, None)
    """
    # A sign behind a letter, a digit or a bracket is an operator or a hyphen.
    found = re.findall(rf"(?<![\w)])({_NUMBER.pattern})|({_NUMBER.pattern.replace('[-+]?', '')})", text)
    return _value(found[-1][0] or found[-1][1]) if found else None


def exact(completions: Sequence[str], answers: Sequence[str]) -> list[float]:
    """1 for each completion that is its answer, as :func:`is_exact`; else 0."""
    return [float(is_exact(*pair)) for pair in zip(completions, answers, strict=True)]


def number(completions: Sequence[str], answers: Sequence[str]) -> list[float]:
    """1 for each completion whose last number is the last number of its answer; else 0."""
    pairs = zip(map(last_number, completions), map(last_number, answers), strict=True)
    return [float(found is not None and found == wanted) for found, wanted in pairs]


def format_reward(pattern: str) -> Callable[[Sequence[str]], list[float]]:
    """A reward of 1 for each completion in which a regular expression is found, a dot matching line ends, too.

    Args:
        pattern: the regular expression, with ``^`` and ``$`` where the complete text has to match.

    Raises:
        re.error: it is no regular expression.

    Example:
        >>> format_reward("^<answer>.*</answer>$")(["<answer>4</answer>", "4"])
        [1.0, 0.0]
    """
    compiled = re.compile(pattern, re.DOTALL)
    return lambda completions: [float(compiled.search(text.strip()) is not None) for text in completions]


def length_reward(target: int) -> Callable[[Sequence[Sequence[int]]], list[float]]:
    """A reward for the length of a completion: 1 at ``target`` tokens, falling to 0 at no token and at twice as many.

    Args:
        target: tokens.

    Example:
        >>> length_reward(4)([[5, 6, 7, 8], [5, 6], []])
        [1.0, 0.5, 0.0]
    """
    return lambda completion_ids: [max(0.0, 1 - abs(len(ids) - target) / target) for ids in completion_ids]


def _value(number: str) -> float:
    return float(number.replace(",", ""))
