"""The texts of the text world: code and prose from the standard library of the running Python, in disjoint splits."""

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

# encodings/ and _sysconfigdata are generated: their files are almost equal, or full of paths of the build machine.
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
    """Code for pretraining, and the splits of the package; ``old_train`` is a part of the code for pretraining."""

    pretraining: list[Document] = field(default_factory=list)
    splits: dict[str, list[Document]] = field(default_factory=dict)


def collect(root: Path | None = None) -> Corpus:
    """Read the standard library in ``root`` (by default that of this Python) and split it by file name.

    Example:
        >>> sorted(collect().splits)  # doctest: +SKIP
        ['new_test', 'new_train', 'new_validation', 'old_test', 'old_train', 'old_validation']
    """
    code, prose = [], {}
    for source, text in _python_files(root or Path(sysconfig.get_paths()["stdlib"])):
        stripped, paragraphs = take_docstrings(text)
        # A file that was mostly a docstring has no code left.
        if len(stripped) >= SHORTEST_FILE:
            code.append({"text": stripped, "source": source})
        if paragraphs:
            prose[source] = paragraphs
    corpus = Corpus()
    rest = sorted(code, key=lambda doc: hash_position(doc["source"]))
    lines = Counter(line for doc in code for line in _long_lines(doc["text"]))
    for name in ("old_validation", "old_test"):
        corpus.splits[name], rest = _select(rest, lines)
    corpus.pretraining = rest
    # Files of held-out code give no prose, so that no source is in two splits.
    held_out = {doc["source"] for name in corpus.splits for doc in corpus.splits[name]}
    topics = {f"pydoc_data/topics/{name}": text.split("\n\n") for name, text in _topics().items()}
    prose = topics | {source: parts for source, parts in prose.items() if source not in held_out}
    corpus.splits |= _split_prose(_only_once(prose, " ".join(squeeze(doc["text"]) for doc in code)))
    corpus.splits["old_train"] = _seen_code(corpus)
    return corpus


def hash_position(name: str) -> float:
    """A pseudo-random position of ``name`` in [0, 1), the same on all machines."""
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) / 2**32


def squeeze(text: str) -> str:
    """``text`` with white space reduced to single blanks, to compare texts independently of indentation."""
    return " ".join(text.split())


def take_docstrings(text: str) -> tuple[str, list[str]]:
    """Remove the long module and class docstrings from ``text``; return the code and the removed paragraphs."""
    lines, paragraphs, cuts = text.splitlines(), [], []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Module | ast.ClassDef) or ast.get_docstring(node) is None:
            continue
        doc, at = inspect.cleandoc(ast.get_docstring(node) or ""), node.body[0]
        first, last = at.lineno - 1, at.end_lineno or at.lineno
        alone = not lines[first][: at.col_offset].strip() and lines[last - 1].rstrip().endswith(("'", '"'))
        if len(doc) >= SHORTEST_PROSE and alone:
            paragraphs += doc.split("\n\n")
            # A class that had only a docstring still needs a body.
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


def _select(docs: list[Document], lines: Counter[str]) -> tuple[list[Document], list[Document]]:
    """Select the first documents of moderate length up to the wanted size; return them and all others.

    A file that shares many long lines with another file (bz2.py with gzip.py) is not selected, because a model may have
    memorized them from the other file.
    """
    selected, rest, size = [], [], 0
    for doc in docs:
        long = _long_lines(doc["text"])
        shared = sum(lines[line] > 1 for line in long)
        if size < HELD_OUT_CHARS and len(doc["text"]) <= LARGEST_HELD_OUT and shared <= TWIN_SHARE * len(long):
            selected.append(doc)
            size += len(doc["text"])
        else:
            rest.append(doc)
    return selected, rest


def _seen_code(corpus: Corpus) -> list[Document]:
    """The first documents of the code for pretraining that have no prose in another split, up to the wanted size."""
    elsewhere = {doc["source"] for docs in corpus.splits.values() for doc in docs}
    selected, size = [], 0
    for doc in corpus.pretraining:
        if size < KEPT_CHARS and len(doc["text"]) <= LARGEST_HELD_OUT and doc["source"] not in elsewhere:
            selected.append(doc)
            size += len(doc["text"])
    return selected


def _only_once(prose: dict[str, list[str]], code: str) -> list[Document]:
    """Documents without paragraphs that are repeated in another document or in ``code``.

    Many topics contain other topics ("specialnames", "compound"), so that splits by topic alone would overlap.
    """
    seen: set[str] = set()
    docs = []
    # Short sources first, so that a paragraph belongs to its topic and not to the collection that quotes it.
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
        at = hash_position("prose:" + doc["source"])
        name = "new_test" if at < PROSE_SHARE else "new_validation" if at < 2 * PROSE_SHARE else "new_train"
        splits[name].append(doc)
    return splits
