"""Several sets of examples mixed by weight into one, the same for the same seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from orthotune.errors import DataError
from orthotune.text.data import Examples

Stop = Literal["first", "last"]
#: A set is repeated at most so many times: larger numbers are weights that nobody meant.
MOST_REPEATS = 100


def mixed(sets: Sequence[Examples], weights: Sequence[float], stop: Stop = "first", seed: int = 0) -> Examples:
    """One set in which each of several sets has the share of rows that its weight says, in random order.

    Args:
        sets: to mix.
        weights: one for each set, relative to their sum.
        stop: ``first`` ends the mixture when the first of its sets is used up, so that no row is repeated; ``last``
            when the last one is, and smaller sets begin again.
        seed: of the choice of rows and of their order.

    Returns:
        The mixture; its notes say the shares.

    Raises:
        DataError: a weight that gives a set no row, or repeats it more than 100 times.

    Example:
        >>> one, other = (Examples([{"text": name}] * 10, "text", name) for name in "ab")
        >>> len(mixed([one, other], [3, 1]).rows)
        13
    """
    counts = rows_of_sets([len(one.rows) for one in sets], weights, stop)
    _check_counts(sets, counts)
    chosen = [(n, row) for n, one in enumerate(sets) for row in _chosen(len(one.rows), counts[n], f"{seed}:{n}")]
    random.Random(f"{seed}:order").shuffle(chosen)
    return replace(
        joined(sets),
        rows=[sets[n].rows[row] for n, row in chosen],
        places=tuple(sets[n].place(row) for n, row in chosen),
        notes=(*(note for one in sets for note in one.notes), _shares(sets, weights, counts)),
    )


def joined(sets: Sequence[Examples]) -> Examples:
    """All rows of several sets, one set after the other.

    Args:
        sets: at least one.

    Example:
        >>> joined([Examples([{"text": "a"}], "text", "one"), Examples([{"text": "b"}], "text", "other")]).source
        'one + other'
    """
    if len(sets) == 1:
        return sets[0]
    formats = {one.format for one in sets}
    return Examples(
        [row for one in sets for row in one.rows],
        formats.pop() if len(formats) == 1 else "mixed",
        " + ".join(one.source for one in sets),
        sum(one.blank for one in sets),
        tuple(sorted({column for one in sets for column in one.unused})),
        tuple(one.place(row) for one in sets for row in range(len(one.rows))),
        tuple(note for one in sets for note in one.notes),
    )


def rows_of_sets(sizes: Sequence[int], weights: Sequence[float], stop: Stop) -> list[int]:
    """How many rows of each set a mixture has.

    Args:
        sizes: rows of each set.
        weights: one for each set, relative to their sum.
        stop: ``first`` or ``last``, as for :func:`mixed`.

    Example:
        >>> rows_of_sets([100, 100], [0.7, 0.3], "first"), rows_of_sets([100, 100], [0.7, 0.3], "last")
        ([100, 42], [233, 100])
    """
    total = sum(weights)
    ends = [size * total / weight for size, weight in zip(sizes, weights, strict=True)]
    end = min(ends) if stop == "first" else max(ends)
    # Floating-point numbers a little below a whole number of rows are this number.
    return [int(end * weight / total + 1e-6) for weight in weights]


def _chosen(size: int, count: int, seed: str) -> list[int]:
    """``count`` rows of a set: all of them as often as they fit, and some at random."""
    return list(range(size)) * (count // size) + random.Random(seed).sample(range(size), count % size)


def _check_counts(sets: Sequence[Examples], counts: Sequence[int]) -> None:
    for one, count in zip(sets, counts, strict=True):
        if not count:
            raise DataError(
                f"the weight of {one.source!r}", got="a share of less than one row", needed="at least one",
                do="Raise the weight, leave the set out, or pass mixture_stop=last",
            )  # fmt: skip
        if count > MOST_REPEATS * len(one.rows):
            raise DataError(
                f"mixture_stop=last with the weight of {one.source!r}",
                got=f"its {len(one.rows):,} rows would be repeated {count / len(one.rows):,.0f} times",
                needed=f"at most {MOST_REPEATS} times",
                do="Lower the weight, or pass mixture_stop=first",
            )


def _shares(sets: Sequence[Examples], weights: Sequence[float], counts: Sequence[int]) -> str:
    total = sum(counts)
    shares = []
    for one, count in zip(sets, counts, strict=True):
        size = len(one.rows)
        times = f", each {count / size:.2g} times" if count > size else "" if count == size else f" of {size:,}"
        shares.append(f"{count / total:.1%} {one.source} ({count:,} rows{times})")
    note = f"mixture: {total:,} rows, {'; '.join(shares)}."
    if max(weights) < 1 and abs(sum(weights) - 1) > 1e-6:
        note += f" The weights add up to {sum(weights):g} and are relative to that."
    return note
