"""Preferences made from the text world: go on in prose, as the text was written, and not in a line of code.

The small model was pretrained on code, and goes on in code after many sentences.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from orthotune.errors import DataError
from orthotune.worlds import text

#: Splits of prose, and the split of code that rejected answers are taken from: none that forgetting is measured on.
CODE_OF: dict[str, str] = {"new_train": "old_train", "new_validation": "old_test", "new_test": "old_test"}
#: Words of a prompt and of an answer, characters of a line of code, and how many pairs a document gives at most.
PROMPT_WORDS, ANSWER_WORDS, LINE, PAIRS_OF_DOCUMENT = 12, (8, 20), (40, 100), 4


def load_pairs(split: str) -> list[dict[str, str]]:
    """The pairs that a split of prose of the text world gives, always the same ones, each with its ``source``.

    The chosen answer is how the document goes on, the rejected one is a line of code.

    Args:
        split: a key of :data:`CODE_OF`.

    Raises:
        DataError: there is no such split, or its file is not installed.

    Example:
        >>> sorted(load_pairs("new_test")[0])
        ['chosen', 'prompt', 'rejected', 'source']
    """
    if split not in CODE_OF:
        raise DataError(f"preferences text-world/{split}", needed=f"one of {', '.join(CODE_OF)}")
    shortest, longest = LINE
    lines = [line.strip() for document in text.load_split(CODE_OF[split]) for line in document["text"].splitlines()]
    lines = [line for line in lines if shortest <= len(line) <= longest and not line.startswith("#")]
    chance = random.Random(split)
    return [
        {"prompt": prompt, "chosen": f" {answer}", "rejected": f" {chance.choice(lines)}", "source": document["source"]}
        for document in text.load_split(split)
        for prompt, answer in _passages(document["text"])
    ]


def _passages(document: str) -> Iterator[tuple[str, str]]:
    """Beginnings of paragraphs of prose with what follows, in the order of the document."""
    found = 0
    for paragraph in re.split(r"\n\s*\n", document):
        words, (fewest, most) = paragraph.split(), ANSWER_WORDS
        answer = words[PROMPT_WORDS : PROMPT_WORDS + most]
        prose = sum(word.strip(".,:;()'\"").isalpha() for word in words) > 0.8 * len(words)
        if prose and found < PAIRS_OF_DOCUMENT and len(answer) >= fewest:
            found += 1
            yield " ".join(words[:PROMPT_WORDS]), " ".join(answer)
