"""Pair generated images with their conditions: by name or by a manifest, never by position."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orthotune.errors import DataError
from orthotune.files.json_file import read_json_lines
from orthotune.files.tables import read_table
from orthotune.metrics.image_files import find_images

#: The manifest that is read from the folder of results when no other is named.
MANIFEST = "manifest.jsonl"
KEYS = ("result", "condition", "prompt", "subject")


@dataclass(frozen=True)
class Entry:
    """One line of a manifest: a result with its condition (a file in the folder of conditions), prompt and subject."""

    result: str
    condition: str | None = None
    prompt: str | None = None
    subject: str = ""


@dataclass(frozen=True)
class Pair:
    """A result beside its condition, both files existing."""

    name: str
    result: Path
    condition: Path


@dataclass
class Pairing:
    """All pairs, and a description of each file without a partner."""

    pairs: list[Pair] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def read_manifest(path: Path) -> list[Entry]:
    """The lines of a manifest: JSON Lines, or CSV with a header.

    Keys: ``result`` (file in the folder of results), and optionally ``condition`` (file in the folder of conditions),
    ``prompt``, ``subject`` (folder inside the references).

    Raises:
        DataError: the file is missing, or a line has unknown keys or no result.

    Example:
        >>> read_manifest(Path("manifest.jsonl"))[0]  # doctest: +SKIP
        Entry(result='0.png', condition='edges-0.png', prompt='a cat', subject='')
    """
    rows: Iterable[tuple[int, Mapping[str, object]]]
    if path.suffix.lower() == ".csv":
        rows = read_table(path, named="manifest")
    else:
        rows = read_json_lines(path, named="manifest", needed='{"result": "a.png", ...}')
    return [_entry(path, number, row) for number, row in rows]


def _entry(path: Path, number: int, row: Mapping[str, object]) -> Entry:
    given = {key: value for key, value in row.items() if value not in (None, "")}
    wrong = [key for key in given if key not in KEYS or not isinstance(given[key], str)]
    if wrong or "result" not in given:
        got = f"{wrong[0]}={given[wrong[0]]!r}" if wrong else "no result"
        raise DataError(f"manifest {path}, line {number}", got=got, needed=f"texts under {', '.join(KEYS)}")
    return Entry(**given)  # type: ignore[arg-type]


def entries(results: Path, manifest: Path | None = None) -> list[Entry]:
    """The entries of the manifest; without a manifest, one entry per image in ``results``.

    Args:
        results: folder of generated images.
        manifest: the manifest; None reads ``manifest.jsonl`` in ``results`` if it exists.

    Raises:
        DataError: no images, or a manifest that is empty or has a faulty line.

    Example:
        >>> entries(Path("results"))  # doctest: +SKIP
        [Entry(result='0.png', condition=None, prompt=None, subject='')]
    """
    inside = results / MANIFEST
    manifest = manifest or (inside if inside.is_file() else None)
    if manifest is None:
        return [Entry(path.relative_to(results).as_posix()) for path in find_images(results).values()]
    listed = read_manifest(manifest)
    if not listed:
        raise DataError(f"manifest {manifest}", got="no line")
    return listed


def pair(results: Path, conditions: Path, manifest: Path | None = None) -> Pairing:
    """Pair results with conditions: files of the same name (suffixes may differ), or by a manifest.

    Args:
        results: folder of generated images.
        conditions: folder of condition images.
        manifest: which condition belongs to which result; None pairs by name.

    Raises:
        DataError: a folder without images, a manifest with a faulty line, or no pair.

    Example:
        >>> pair(Path("results"), Path("edges")).missing  # doctest: +SKIP
        ['result 7 has no condition']
    """
    known = find_images(conditions)
    pairing, used = Pairing(), set()
    for entry in entries(results, manifest):
        result = results / entry.result
        name = Path(entry.result).with_suffix("").as_posix()
        condition = conditions / entry.condition if entry.condition else known.get(name)
        if not result.is_file():
            pairing.missing.append(f"result {entry.result} is not there")
        elif condition is None or not condition.is_file():
            pairing.missing.append(f"result {entry.result} has no condition")
        else:
            pairing.pairs.append(Pair(name, result, condition))
        used.add(condition)
    pairing.missing += [f"condition {name} has no result" for name, path in known.items() if path not in used]
    if not pairing.pairs:
        raise DataError(
            f"results in {results} and conditions in {conditions}", got="no two of one name",
            do="Name files alike, or pair them in a manifest",
        )  # fmt: skip
    return pairing
