"""Tags of words on the tokens of a tokenizer: one piece of each word has its tag, the others none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

#: The label of a token that is neither learned nor measured, for torch's cross-entropy.
UNTAGGED = -100


def align(
    tokenizer: Any, words: Sequence[str], tags: Sequence[int], tokens: int, piece: Literal["first", "last"] = "first"
) -> dict[str, list[int]]:
    """The tokens of a text and their labels.

    Args:
        tokenizer: of the model, a fast one.
        words: of the text.
        tags: numbers of the words' tags.
        tokens: most tokens; words that are not complete within them have no tag.
        piece: the piece of a word that has its tag.

    Returns:
        what the tokenizer returns, with ``labels``: the number of a tag, or ``UNTAGGED``.

    Example:
        >>> from transformers import AutoTokenizer
        >>> align(AutoTokenizer.from_pretrained("bert-base-uncased"), ["Ada"], [1], 9)["labels"]  # doctest: +SKIP
        [-100, 1, -100]
    """
    spaced = list(words)
    if tokenizer.tokenize(" a") != tokenizer.tokenize("a"):  # a space is a part of the word that follows
        spaced = [word if number == 0 else f" {word}" for number, word in enumerate(words)]
    found = tokenizer(spaced, is_split_into_words=True, truncation=True, max_length=tokens)
    places = found.word_ids()
    cut = places[-1] if len(places) >= tokens and places[-1] is not None else None
    if cut is None and len(places) >= tokens:
        cut = next((word for word in reversed(places) if word is not None), None)
    complete = tokenizer(spaced, is_split_into_words=True).word_ids() if cut is not None else places
    if cut is not None and places.count(cut) == complete.count(cut):
        cut = None
    labels = [UNTAGGED] * len(places)
    for index, word in enumerate(places):
        if word is None or word == cut:
            continue
        other = places[index - 1] if piece == "first" and index else None
        if piece == "last":
            other = places[index + 1] if index + 1 < len(places) else None
        if other != word:
            labels[index] = tags[word]
    return {**found, "labels": labels}
