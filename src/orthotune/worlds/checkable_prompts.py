"""Prompts whose answers can be checked, made by a rule and the same everywhere: methods of Python classes, and sums."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from orthotune.errors import DataError, nearest
from orthotune.files.installed_worlds import names_built_in

Row = dict[str, Any]
SPLITS = ("train", "test")
#: Names of attributes; every fourth one is in the test split alone.
_NAMES = (
    "name value path key item text data line file list code type node level host port count title width index "
    "offset size color label mode state parent body buffer prefix limit scale"
)
#: Beginnings of methods, each continued by the name of the attribute and the end of the line.
METHODS = (
    "    def get_{name}(self):\n        return self.",
    "    def set_{name}(self, {name}):\n        self.{name} = ",
    "    def del_{name}(self):\n        del self.",
    "    def __init__(self, {name}):\n        self.{name} = ",
)
#: What a teacher is shown: the methods of a class with this attribute, solved.
SOLVED = (
    "    def __init__(self, {name}):\n        self.{name} = {name}\n\n"
    "    def get_{name}(self):\n        return self.{name}\n\n"
    "    def set_{name}(self, {name}):\n        self.{name} = {name}\n\n"
    "    def del_{name}(self):\n        del self.{name}\n\n"
)
#: Sums of a split.
SUMS = {"train": 512, "test": 64}


def _methods(split: str) -> Iterator[Row]:
    names = [name for place, name in enumerate(_NAMES.split(" ")) if (place % 4 == 3) == (split == "test")]
    for name in names:
        for method in METHODS:
            # A space at the end belongs to the next token of most tokenizers.
            prompt = method.format(name=name).rstrip(" ")
            yield {"prompt": prompt, "answer": name, "context": SOLVED.format(name=name)}


def _sums(split: str) -> Iterator[Row]:
    # All sums in one order, so that the splits have none in common.
    pairs = [
        (one, sign, other)
        for one in range(1, 21)
        for other in range(1, 21)
        for sign in "+-"
        if sign == "+" or one > other
    ]
    random.Random(0).shuffle(pairs)
    start = 0 if split == "train" else SUMS["train"]
    for one, sign, other in pairs[start : start + SUMS[split]]:
        answer = one + other if sign == "+" else one - other
        asked = f"What is {one} {sign} {other}? Reply with the number alone."
        yield {"prompt": [{"role": "user", "content": asked}], "answer": str(answer)}


#: What a set is called, and what makes the rows of a split.
SETS: dict[str, Callable[[str], Iterator[Row]]] = {"python-methods": _methods, "arithmetic": _sums}


def rows_of(source: str) -> list[Row] | None:
    """The rows of ``SET/SPLIT``; None for a source that names no set.

    Args:
        source: a name of ``SETS``, a slash, and ``train`` or ``test``.

    Returns:
        Rows with ``prompt`` and ``answer``; those of ``python-methods`` also have a ``context`` that helps a teacher.

    Raises:
        DataError: the set has no such split, or a path here has the same name.

    Example:
        >>> rows_of("arithmetic/test")[0]["answer"].isdigit(), rows_of("reviews.jsonl")
        (True, None)
    """
    if not names_built_in(source, SETS):
        return None
    name, slash, split = source.partition("/")
    if split not in SPLITS:
        close = nearest(split, SPLITS, count=1)
        raise DataError(
            f"data {source!r}",
            got=f"no split {split!r}" if slash else "no split",
            needed=" or ".join(f"{name}/{one}" for one in SPLITS),
            do=f"Did you mean '{name}/{close[0]}'?" if close else None,
        )
    return list(SETS[name](split))
