"""Passages of the text world's prose with labels, and pairs of them: data for classifiers and for encoders."""

from __future__ import annotations

import re
from collections.abc import Iterator

from orthotune.errors import DataError
from orthotune.files.installed_worlds import TEXT_WORLD
from orthotune.worlds.text import load_split

#: What settings call the passages, the pairs and the tagged words.
PASSAGES, PAIRS, TAGGED = f"{TEXT_WORLD}/passages", f"{TEXT_WORLD}/pairs", f"{TEXT_WORLD}/code-words"
#: What a word of code in prose looks like: joined by underscores or dots, or called.
CODE_WORD = re.compile(r"\w+(_\w+)+|\w+\(.*|\w+(\.\w+)+|__\w+")
#: Python packages that enough prose is about; each one is a class.
PACKAGES = ("asyncio", "distutils", "email", "http", "tkinter")
#: Characters of a passage: at least, and at most.
SHORTEST, LONGEST = 80, 400
#: Pairs of a document, so that long ones do not outweigh the others.
OF_ONE_DOCUMENT = 4


def passages(source: str = PASSAGES) -> list[tuple[str, dict[str, str]]]:
    """Passages of documentation, labelled with the package that they are about, each with its place.

    Args:
        source: ``text-world/passages``, or ``text-world/passages/held_out`` with those of other documents.

    Raises:
        DataError: another name, or the world is not installed.

    Example:
        >>> sorted({row["label"] for _, row in passages()})
        ['asyncio', 'distutils', 'email', 'http', 'tkinter']
    """
    found = []
    for split in _splits(source, PASSAGES):
        for document in load_split(split):
            package = document["source"].partition("/")[0]
            if package in PACKAGES:
                place = f"{source}, {document['source']}"
                found += [(place, {"text": text, "label": package}) for text in _paragraphs(document["text"])]
    return found


def pairs(source: str = PAIRS) -> list[tuple[str, dict[str, str]]]:
    """Neighbouring passages of one document: an encoder learns to find the second by the first.

    Args:
        source: ``text-world/pairs``, or ``text-world/pairs/held_out`` with those of other documents.

    Raises:
        DataError: another name, or the world is not installed.

    Example:
        >>> sorted(pairs()[0][1])
        ['anchor', 'positive']
    """
    found = []
    for split in _splits(source, PAIRS):
        for document in load_split(split):
            texts = list(_paragraphs(document["text"]))
            place = f"{source}, {document['source']}"
            found += [
                (place, {"anchor": one, "positive": other})
                for one, other in list(zip(texts[::2], texts[1::2], strict=False))[:OF_ONE_DOCUMENT]
            ]
    return found


def tagged_words(source: str = TAGGED) -> list[tuple[str, dict[str, list[str]]]]:
    """Words of passages with tags: ``B-CODE`` and ``I-CODE`` for words of code, ``O`` for all others.

    Args:
        source: ``text-world/code-words``, or ``text-world/code-words/held_out`` with those of other documents.

    Raises:
        DataError: another name, or the world is not installed.

    Example:
        >>> sorted({tag for _, row in tagged_words() for tag in row["tags"]})
        ['B-CODE', 'I-CODE', 'O']
    """
    found = []
    for split in _splits(source, TAGGED):
        for document in load_split(split):
            place = f"{source}, {document['source']}"
            texts = [text.split() for text in _paragraphs(document["text"]) if CODE_WORD.search(text)]
            found += [(place, {"words": words, "tags": _tags(words)}) for words in texts[:OF_ONE_DOCUMENT]]
    return found


def _tags(words: list[str]) -> list[str]:
    tags: list[str] = []
    for word in words:
        code = CODE_WORD.match(word.strip("`'\"(,;:")) is not None
        inside = bool(tags) and tags[-1] != "O"
        tags.append(("I-CODE" if inside else "B-CODE") if code else "O")
    return tags


def _splits(source: str, name: str) -> tuple[str, ...]:
    if source == name:
        return ("new_train",)
    if source == f"{name}/held_out":
        return ("new_validation", "new_test")
    raise DataError(f"data {source!r}", got="no such texts of the text world", needed=f"{name} or {name}/held_out")


def _paragraphs(text: str) -> Iterator[str]:
    """Paragraphs of a document, short ones together with the next, long ones cut."""
    held = ""
    for paragraph in text.split("\n\n"):
        held = f"{held} {' '.join(paragraph.split())}".strip()
        if len(held) >= SHORTEST:
            yield held[:LONGEST]
            held = ""
