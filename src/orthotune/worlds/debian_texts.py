"""Real texts that Debian packages: manual pages in French and German, an English handbook, a dictionary.

Each set is read from its package once, cut into three splits by a hash of the document's name, and kept in the cache.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orthotune.errors import DataError, nearest
from orthotune.files.atomic import atomic_write, write_text
from orthotune.files.cache import cache_folder
from orthotune.files.installed_worlds import names_built_in
from orthotune.files.json_file import json_line, read_json_lines, write_json
from orthotune.files.output import temporary_folder
from orthotune.worlds.plain_text import text_of_html, text_of_roff

Row = dict[str, Any]
Documents = Iterator[tuple[str, bytes]]
SPLITS = ("train", "validation", "test")
#: Shorter documents say nothing but where another one is.
SHORTEST = 500
#: Entries of a dictionary that are kept: many times more than the runs of a comparison read.
ENTRIES = 24_000


@dataclass(frozen=True)
class TextSet:
    """A set of texts.

    Args:
        package: the Debian package that holds the set.
        summary: what the set is, in one line.
        read: from the files of the package, name and bytes, to rows with a ``source``.
    """

    package: str
    summary: str
    read: Callable[[Documents], Iterator[Row]]


def _manual_pages(language: str, end: str) -> Callable[[Documents], Iterator[Row]]:
    """``end``: the title of the last chapter, about the translation, which is alike on every page."""

    def read(files: Documents) -> Iterator[Row]:
        for name, content in files:
            if re.search(rf"share/man/{language}/man\d/.*\.gz$", name):
                text = text_of_roff(gzip.decompress(content).decode("utf-8", "replace"))
                yield {"text": text.split(f"\n{end}\n")[0].strip(), "source": Path(name).stem}

    return read


def _handbook(files: Documents) -> Iterator[Row]:
    for name, content in files:
        if re.search(r"html/en-US/[^/]*\.html$", name) and not name.endswith("index.html"):
            text = text_of_html(content.decode("utf-8", "replace"))
            # The links between pages stand before the title, which begins with the number of the section.
            title = re.search(r"^(?:\d+\.\d+\. |Chapter|Appendix)", text, re.MULTILINE)
            yield {"text": text[title.start() if title else 0 :], "source": Path(name).stem}


def _dictionary(files: Documents) -> Iterator[Row]:
    kinds = {"data.noun": "noun", "data.verb": "verb", "data.adj": "adjective"}
    found: list[Row] = []
    for name, content in files:
        if (kind := kinds.get(Path(name).name)) is None:
            continue
        for line in content.decode("utf-8", "replace").splitlines():
            if line.startswith(" ") or " | " not in line:
                continue
            fields, _, gloss = line.partition(" | ")
            word = re.sub(r"\(.*\)$", "", fields.split()[4]).replace("_", " ")
            meaning = gloss.split('; "')[0].strip().rstrip(";")
            if word.islower() and len(meaning) >= 20:
                asked = f'What does the {kind} "{word}" mean?'
                answer = f"{word} ({kind}): {meaning}"
                found.append({
                    "prompt": [{"role": "user", "content": asked}],
                    "completion": [{"role": "assistant", "content": answer}],
                    "source": f"{kind} {word}",
                })  # fmt: skip
    once = {row["source"]: row for row in reversed(found)}
    yield from sorted(once.values(), key=lambda row: _number(row["source"]))[:ENTRIES]


#: By the word that settings name a set with, as in ``data=manpages-fr/train``.
TEXTS: dict[str, TextSet] = {
    "manpages-fr": TextSet(
        "manpages-fr", "manual pages in French: running text of a language that small models hardly know",
        _manual_pages("fr", "TRADUCTION"),
    ),
    "manpages-de": TextSet("manpages-de", "manual pages in German", _manual_pages("de", "ÜBERSETZUNG")),
    "handbook": TextSet(
        "debian-handbook", "the Debian Administrator's Handbook: running text in English", _handbook,
    ),
    "dictionary": TextSet(
        "wordnet-base", "questions for the meaning of a word, with answers in a dictionary's narrow style", _dictionary,
    ),
}  # fmt: skip


def folder(name: str) -> Path:
    """Where the splits of a set are, or will be.

    Args:
        name: a key of ``TEXTS``.
    """
    return cache_folder() / "texts" / name


def load_split(name: str, split: str) -> list[Row]:
    """The rows of one split, as :func:`get` wrote them.

    Args:
        name: a key of ``TEXTS``.
        split: one of ``SPLITS``.

    Returns:
        Rows with ``source``, and ``text`` or ``prompt`` and ``completion``.

    Raises:
        DataError: there is no such split, or the set has not been fetched yet.
    """
    if split not in SPLITS:
        close = nearest(split, SPLITS, count=1)
        raise DataError(
            f"split {split!r} of {name}",
            needed=f"one of {', '.join(SPLITS)}",
            do=f"Did you mean {close[0]!r}?" if close else None,
        )
    path = folder(name) / f"{split}.jsonl"
    if not path.is_file():
        raise DataError(
            f"data {name}/{split}", got=f"no file {path}",
            do=f"Run `orthotune worlds get {name}` once; the texts are in Debian's package {TEXTS[name].package}",
        )  # fmt: skip
    try:
        return [row for _, row in read_json_lines(path)]
    except ValueError as fault:
        raise DataError(
            f"data {name}/{split}", got=str(fault), do=f"Run `orthotune worlds get {name}` again"
        ) from fault


def get(name: str, package: Path | None = None) -> Path:
    """Read a set from its package into the cache.

    Args:
        name: a key of ``TEXTS``.
        package: the package's file, which ends with ``.deb``; None downloads it with ``apt-get``.

    Returns:
        The folder with ``train.jsonl``, ``validation.jsonl``, ``test.jsonl`` and ``card.json``.

    Raises:
        DataError: there is no such package or it holds no such texts.
    """
    kind, target = TEXTS[name], folder(name)
    with temporary_folder() as beside:
        archive = package or _download(kind.package, beside)
        rows = [row for row in kind.read(_files(archive)) if "text" not in row or len(row["text"]) >= SHORTEST]
    if not rows:
        raise DataError(f"package {archive.name}", got="none of its texts in it", needed=f"a package {kind.package}")
    rows.sort(key=lambda row: _number(row["source"]))
    splits: dict[str, list[Row]] = {split: [] for split in SPLITS}
    for row in rows:
        splits[_split_of(row["source"])].append(row)
    with atomic_write(target) as partial:
        partial.mkdir(parents=True)
        for split, own in splits.items():
            write_text(partial / f"{split}.jsonl", "".join(map(json_line, own)))
        counts = {split: len(own) for split, own in splits.items()}
        write_json(partial / "card.json", {"package": archive.name, "summary": kind.summary, "documents": counts})
    return target


def _number(source: str) -> int:
    return int.from_bytes(hashlib.sha256(source.encode()).digest()[:6], "big")


def _split_of(source: str) -> str:
    """A tenth each to validate and to test; a document's translations are in the same split in every language."""
    return {8: "validation", 9: "test"}.get(_number(source) % 10, "train")


def _download(package: str, into: Path) -> Path:
    do = f"Fetch Debian's package {package} on another machine and pass it with --from FILE.deb"
    if shutil.which("apt-get") is None:
        raise DataError(f"texts of the package {package}", got="no apt-get on this machine", do=do)
    run = subprocess.run(["apt-get", "download", package], cwd=into, capture_output=True, text=True, check=False)
    found = next(into.glob("*.deb"), None)
    if run.returncode or found is None:
        got = (run.stderr.strip().splitlines() or ["apt-get gave no file"])[-1]
        raise DataError(
            f"texts of the package {package}", got=got, do=f"Run apt-get update, or: {do[0].lower()}{do[1:]}"
        )
    return found


def _files(archive: Path) -> Documents:
    """Name and content of each file in a Debian package: an ``ar`` archive with a ``tar`` of its files in it."""
    try:
        with tarfile.open(fileobj=io.BytesIO(_data(archive))) as members:
            for member in members:
                if member.isfile() and (opened := members.extractfile(member)) is not None:
                    yield member.name, opened.read()
    except (OSError, EOFError, ValueError, tarfile.TarError, lzma.LZMAError) as fault:
        got = getattr(fault, "strerror", None) or str(fault)
        raise DataError(f"package {archive}", got=got, needed="a Debian package (.deb)") from fault


def _data(archive: Path) -> bytes:
    content = archive.read_bytes()
    if not content.startswith(b"!<arch>\n"):
        raise ValueError("a file that is no package")
    at = 8
    while at + 60 <= len(content):
        name, size = content[at : at + 16].decode("ascii", "replace").strip(), int(content[at + 48 : at + 58])
        at += 60
        if name.startswith("data.tar"):
            if name.rstrip("/").endswith(".zst"):
                raise ValueError("contents packed with zstd, which this Python does not read")
            return content[at : at + size]
        at += size + size % 2
    raise ValueError("a package without contents")


def rows_of(source: str) -> Iterable[tuple[str, Row]] | None:
    """The rows that ``SET/SPLIT`` means, each with its name for messages; None for any other source of data.

    Args:
        source: the setting ``data`` of a run, or one like it.

    Raises:
        DataError: as :func:`load_split`, or a path here has the same name.
    """
    if not names_built_in(source, TEXTS):
        return None
    name, _, split = source.partition("/")
    return [(f"{source}, {row['source']}", row) for row in load_split(name, split)]
