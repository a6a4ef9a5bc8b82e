"""Shares of right replies: the interval of one, and the test of two over the same questions."""

from __future__ import annotations

import math

#: The quantile of the normal distribution for intervals of 95 %.
_QUANTILE = 1.959963984540054


def wilson(right: int, questions: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share.

    Args:
        right: right replies.
        questions: replies; at least 1.

    Returns:
        The lower and the upper end, from 0 to 1.

    Example:
        >>> [round(end, 3) for end in wilson(20, 40)]
        [0.352, 0.648]
    """
    share, z = right / questions, _QUANTILE
    middle = share + z * z / (2 * questions)
    half = z * math.sqrt(share * (1 - share) / questions + z * z / (4 * questions**2))
    low, high = ((middle + sign * half) / (1 + z * z / questions) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


def mcnemar(one: int, other: int) -> float:
    """The p-value of McNemar's exact test, two-sided, from the numbers of pairs that differ in either direction.

    Args:
        one: pairs that differ in one direction.
        other: pairs that differ in the other direction.

    Example:
        >>> mcnemar(5, 0), mcnemar(3, 3)
        (0.0625, 1.0)
    """
    pairs = one + other
    tail = sum(math.comb(pairs, count) for count in range(min(one, other) + 1))
    return min(1.0, 2 * tail / 2**pairs)
