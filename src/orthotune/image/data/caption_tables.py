"""Tables of pictures and captions: JSON Lines, parquet, and data sets of the hub."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from orthotune.errors import DataError
from orthotune.runs.data_files import Row, read_rows
from orthotune.runs.hub_data import load_split

SUFFIXES = (".jsonl", ".json", ".parquet")
#: Columns in the order in which they are asked for.
PICTURE = ("file_name", "image")
CAPTION = ("text", "prompt", "caption")
CONDITION = ("conditioning_image", "conditioning_image_file_name")


@dataclass(frozen=True)
class Said:
    """One example before its files were looked at.

    Args:
        place: the file, line or row that names it, for errors.
        name: how the image is called.
        origin: its file, or the bytes of such a file.
        caption: None when nothing is said of it.
        condition: the control image's file or bytes.
    """

    place: str
    name: str
    origin: Path | bytes = field(repr=False)
    caption: str | None
    condition: Path | bytes | None = field(default=None, repr=False)


def from_file(path: Path) -> list[Said]:
    """The rows of a table; paths in it start at its folder.

    Raises:
        DataError: no such file, a broken line, no rows, or a row without an image.
    """
    if path.suffix not in SUFFIXES:
        got = "nothing there" if not path.exists() else "a file"
        raise DataError(
            f"data {path}", got=got, needed=f"a folder of pictures, or a file ending in {', '.join(SUFFIXES)}"
        )
    return from_rows(read_rows(path), path.parent, str(path))


def from_hub(source: str) -> list[Said]:
    """The rows of the hub's data set ``NAME`` or ``NAME:SPLIT``, or of a folder that ``datasets`` can read.

    Raises:
        DataError: no such data set, or a row without an image.
    """
    import datasets

    loaded = load_split(source)
    for name, feature in loaded.features.items():
        if isinstance(feature, datasets.Image):
            # As stored: decoding is ours, so that broken images are named and not an exception in mid-iteration.
            loaded = loaded.cast_column(name, datasets.Image(decode=False))
    return from_rows(((f"{source}, row {number}", row) for number, row in enumerate(loaded)), Path(), source)


def from_rows(rows: Iterable[tuple[str, Row]], folder: Path, source: str) -> list[Said]:
    """``rows``, each with its place, as images with captions; ``folder`` is where their paths start.

    Raises:
        DataError: no rows, or a row without an image or with a caption that is no text.

    Example:
        >>> from_rows([("line 1", {"file_name": "a/é.png", "text": "an e"})], Path("data"), "x")[0].name
        'a/é'
    """
    found = [_said(place, row, folder, number) for number, (place, row) in enumerate(rows)]
    if not found:
        raise DataError(f"data {source}", got="no rows", needed="at least one picture")
    return found


def _said(place: str, row: Row, folder: Path, number: int) -> Said:
    column = _first(row, PICTURE)
    if column is None:
        known = ", ".join(sorted(row)) or "none"
        raise DataError(place, got=f"columns {known}", needed=f"a picture under {' or '.join(PICTURE)}")
    caption = _first(row, CAPTION)
    text = row[caption] if caption else None
    if text is not None and not isinstance(text, str):
        raise DataError(
            f"{place}: column {caption!r}", got=f"{type(text).__name__} {str(text)[:40]!r}", needed="a text"
        )
    control = _first(row, CONDITION)
    path = row[column].get("path") if isinstance(row[column], dict) else row[column]
    name = PurePosixPath(path).with_suffix("").as_posix() if isinstance(path, str) and path else f"row-{number:06}"
    return Said(
        place,
        name,
        _origin(row[column], folder, f"{place}: column {column!r}"),
        " ".join((text or "").split()) or None,
        _origin(row[control], folder, f"{place}: column {control!r}") if control else None,
    )


def _first(row: Row, columns: tuple[str, ...]) -> str | None:
    return next((column for column in columns if row.get(column) is not None), None)


def _origin(value: Any, folder: Path, said: str) -> Path | bytes:
    """The file or the bytes of an image: a path, bytes, or the hub's ``{"bytes": ..., "path": ...}``."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return value
    if isinstance(value, str) and value:
        return folder / value
    raise DataError(said, got=f"{type(value).__name__} {str(value)[:40]!r}", needed="a path, or the bytes of a picture")
