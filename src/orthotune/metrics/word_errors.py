"""The word error rate of transcripts: by jiwer where jiwer is installed, else counted here; both are exact."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec


def word_error_rate(wanted: Sequence[str], found: Sequence[str]) -> float:
    """Words that are wrong, missing or too many, per word of the wanted transcripts.

    Args:
        wanted: transcripts, none without a word.
        found: what was recognized, in the same order.

    Example:
        >>> word_error_rate(["the cat sat"], ["the bat sat down"])
        0.6666666666666666
    """
    if find_spec("jiwer") is not None:
        import jiwer

        return float(jiwer.wer(list(wanted), list(found)))
    return errors_in_words(wanted, found)


def errors_in_words(wanted: Sequence[str], found: Sequence[str]) -> float:
    """As :func:`word_error_rate`, by the edit distance of Levenshtein over words.

    Args:
        wanted: transcripts, none without a word.
        found: what was recognized, in the same order.

    Example:
        >>> errors_in_words(["a b c", "d"], ["a c", "d"])
        0.25
    """
    pairs = [(one.split(), other.split()) for one, other in zip(wanted, found, strict=True)]
    return sum(_distance(one, other) for one, other in pairs) / sum(len(one) for one, _ in pairs)


def _distance(one: Sequence[str], other: Sequence[str]) -> int:
    row = list(range(len(other) + 1))
    for number, word in enumerate(one, 1):
        before, row[0] = row[0], number
        for place, candidate in enumerate(other, 1):
            before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, before + (word != candidate))
    return row[-1]
