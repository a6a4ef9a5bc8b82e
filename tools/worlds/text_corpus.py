"""The texts of the text world: code and prose of the running Python's standard library, in disjoint splits."""

from __future__ import annotations

import ast
import hashlib
import inspect
import sysconfig
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

Document = dict[str, str]

# encodings/ and _sysconfigdata are generated: near copies of one another, or full of the building machine's paths.
SKIPPED = {
    "test",
    "tests",
    "idlelib",
    "lib2to3",
    "site-packages",
    "pydoc_data",
    "encodings",
    "_bundled",
    "__pycache__",
}
SKIPPED_PREFIXES = ("_sysconfigdata", "config-")
SHORTEST_FILE, LARGEST_FILE = 100, 300_000
LARGEST_HELD_OUT = 20_000
HELD_OUT_CHARS = 125_000
KEPT_CHARS = 250_000
LONG_LINE = 40
TWIN_SHARE = 0.3
SHORTEST_PROSE = 120
SHORTEST_PARAGRAPH = 50
PROSE_SHARE = 0.13


@dataclass
class Corpus:
    """Code for pretraining, and the splits that ship with the package; ``old_train`` is a part of that code."""

    pretraining: list[Document] = field(default_factory=list)
    splits: dict[str, list[Document]] = field(default_factory=dict)


def collect(root: Path | None = None) -> Corpus:
    """Read the standard library below ``root`` (this Python's own by default) and split it by name.

    Example:
        >>> sorted(collect().splits)  # doctest: +SKIP
        ['new_test', 'new_train', 'new_validation', 'old_test', 'old_train', 'old_validation']
    """
    code, prose = [], {}
    for source, text in _python_files(root or Path(sysconfig.get_paths()["stdlib"])):
        stripped, paragraphs = take_docstrings(text)
        # What was only its docstring is no code any more.
        if len(stripped) >= SHORTEST_FILE:
            code.append({"text": stripped, "source": source})
        if paragraphs:
            prose[source] = paragraphs
    corpus = Corpus()
    rest = sorted(code, key=lambda doc: place(doc["source"]))
    lines = Counter(line for doc in code for line in _long_lines(doc["text"]))
    for name in ("old_validation", "old_test"):
        corpus.splits[name], rest = _draw(rest, lines)
    corpus.pretraining = rest
    # A file whose code is held out lends no prose: then no source is ever in two splits.
    held_out = {doc["source"] for name in corpus.splits for doc in corpus.splits[name]}
    topics = {f"pydoc_data/topics/{name}": text.split("\n\n") for name, text in _topics().items()}
    prose = topics | {source: parts for source, parts in prose.items() if source not in held_out}
    corpus.splits |= _split_prose(_only_once(prose, " ".join(squeeze(doc["text"]) for doc in code)))
    corpus.splits["old_train"] = _seen_code(corpus)
    return corpus


def place(name: str) -> float:
    """Where ``name`` falls in [0, 1): the same on every machine and for every set of neighbours."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32


def squeeze(text: str) -> str:
    """``text`` with every run of white space as one blank, to compare texts whatever their indentation."""
    return " ".join(text.split())


def take_docstrings(text: str) -> tuple[str, list[str]]:
    """Take the long module and class docstrings out of ``text``; return the code left and the paragraphs taken."""
    lines, paragraphs, cuts = text.splitlines(), [], []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Module | ast.ClassDef) or ast.get_docstring(node) is None:
            continue
        doc, at = inspect.cleandoc(ast.get_docstring(node) or ""), node.body[0]
        first, last = at.lineno - 1, at.end_lineno or at.lineno
        alone = not lines[first][: at.col_offset].strip() and lines[last - 1].rstrip().endswith(("'", '"'))
        if len(doc) >= SHORTEST_PROSE and alone:
            paragraphs += doc.split("\n\n")
            # A class that was only its docstring still needs a body.
            lone = len(node.body) == 1 and isinstance(node, ast.ClassDef)
            cuts.append((first, last, [" " * at.col_offset + "pass"] if lone else []))
    for first, last, body in sorted(cuts, reverse=True):
        lines[first:last] = body
    stripped = "\n".join(lines).strip() + "\n"
    ast.parse(stripped)
    return stripped, paragraphs


def _python_files(root: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if any(part in SKIPPED or part.startswith(SKIPPED_PREFIXES) for part in parts):
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if SHORTEST_FILE <= len(text) <= LARGEST_FILE:
            yield "/".join(parts), text.replace("\f", "")


def _topics() -> dict[str, str]:
    from pydoc_data.topics import topics

    return topics


def _long_lines(text: str) -> set[str]:
    return {line.strip() for line in text.splitlines() if len(line.strip()) >= LONG_LINE}


def _draw(docs: list[Document], lines: Counter[str]) -> tuple[list[Document], list[Document]]:
    """The first documents of moderate length up to the wanted size, and all others.

    A file that shares many long lines with others (bz2.py with gzip.py) would measure memory of its twin: never drawn.
    """
    drawn, rest, size = [], [], 0
    for doc in docs:
        own = _long_lines(doc["text"])
        shared = sum(lines[line] > 1 for line in own)
        if size < HELD_OUT_CHARS and len(doc["text"]) <= LARGEST_HELD_OUT and shared <= TWIN_SHARE * len(own):
            drawn.append(doc)
            size += len(doc["text"])
        else:
            rest.append(doc)
    return drawn, rest


def _seen_code(corpus: Corpus) -> list[Document]:
    """The first documents of the code for pretraining that lend no prose to another split, up to the wanted size."""
    elsewhere = {doc["source"] for docs in corpus.splits.values() for doc in docs}
    drawn, size = [], 0
    for doc in corpus.pretraining:
        if size < KEPT_CHARS and len(doc["text"]) <= LARGEST_HELD_OUT and doc["source"] not in elsewhere:
            drawn.append(doc)
            size += len(doc["text"])
    return drawn


def _only_once(prose: dict[str, list[str]], code: str) -> list[Document]:
    """Documents in which every paragraph appears once over all of them and nowhere in ``code``.

    Many topics quote whole others ("specialnames", "compound"), so splitting by topic alone would leak.
    """
    seen: set[str] = set()
    docs = []
    # Short sources first: a paragraph then belongs to its own topic rather than to the collection that quotes it.
    for source in sorted(prose, key=lambda name: (sum(map(len, prose[name])), name)):
        kept = []
        for paragraph in prose[source]:
            key = squeeze(paragraph)
            if len(key) >= SHORTEST_PARAGRAPH and (key in seen or key in code):
                continue
            seen.add(key)
            kept.append(paragraph)
        text = "\n\n".join(kept).strip("\n")
        if len(text) >= SHORTEST_PROSE and any(len(squeeze(part)) >= SHORTEST_PARAGRAPH for part in kept):
            docs.append({"text": text + "\n", "source": source})
    return sorted(docs, key=lambda doc: doc["source"])


def _split_prose(docs: list[Document]) -> dict[str, list[Document]]:
    splits: dict[str, list[Document]] = {"new_train": [], "new_validation": [], "new_test": []}
    for doc in docs:
        at = place("prose:" + doc["source"])
        name = "new_test" if at < PROSE_SHARE else "new_validation" if at < 2 * PROSE_SHARE else "new_train"
        splits[name].append(doc)
    return splits
