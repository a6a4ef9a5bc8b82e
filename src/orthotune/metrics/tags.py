"""Scores of tagged words: by spans through seqeval where tags are spans and seqeval is installed, else by words."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from importlib.util import find_spec

from torch import Tensor

from orthotune.metrics.classes import class_scores


def are_spans(tags: Collection[str]) -> bool:
    """Whether tags are those of spans (``B-``, ``I-``, ``O``), which seqeval scores, and seqeval is installed.

    Args:
        tags: all that occur.

    Example:
        >>> are_spans({"NOUN", "VERB"})
        False
    """
    spans = all(tag == "O" or tag[:2] in ("B-", "I-", "E-", "S-") for tag in tags)
    return spans and find_spec("seqeval") is not None


def tag_scores(logits: Tensor, labels: Tensor, lengths: Sequence[int], names: Sequence[str]) -> dict[str, float]:
    """Scores of tags.

    Args:
        logits: [words, tags] of all texts, one after another.
        labels: [words], numbers of tags.
        lengths: words of each text.
        names: of the tags.

    Returns:
        ``accuracy``, ``macro_f1`` and ``loss`` of words, and of tags that are spans ``span_f1``.

    Example:
        >>> import torch
        >>> tag_scores(torch.eye(2) * 9, torch.tensor([0, 1]), [2], ["NOUN", "VERB"])["accuracy"]
        1.0
    """
    scores = class_scores(logits, labels)
    if are_spans(names):
        from seqeval.metrics import f1_score

        known, found = (_texts(numbers, lengths, names) for numbers in (labels.tolist(), logits.argmax(-1).tolist()))
        scores = {"span_f1": float(f1_score(known, found, zero_division=0)), **scores}
    return scores


def _texts(numbers: Sequence[int], lengths: Sequence[int], names: Sequence[str]) -> list[list[str]]:
    texts, start = [], 0
    for length in lengths:
        texts.append([names[number] for number in numbers[start : start + length]])
        start += length
    return texts
