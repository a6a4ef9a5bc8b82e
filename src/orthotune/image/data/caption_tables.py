"""Tables of images and captions: JSON Lines, parquet, and data sets of the hub."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from orthotune.errors import DataError
from orthotune.runs.data_files import Row, read_rows
from orthotune.runs.hub_data import load_split

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv")
#: Columns in the order in which they are asked for.
IMAGE = ("file_name", "image", "target", "edited_image")
CAPTION = ("text", "prompt", "caption", "instruction", "edit_prompt")
CONDITION = ("conditioning_image", "conditioning_image_file_name")
#: images to edit: a list of them, or one column for each
REFERENCES = "references"
REFERENCE = (("reference", "source_image", "input_image"), ("reference_2",), ("reference_3",))
MASK = ("mask", "mask_image")


@dataclass(frozen=True)
class CaptionRow:
    """One example whose files are not read yet.

    Args:
        place: the file, line or row of the example, for messages.
        name: of the image.
        origin: the image file, or its bytes.
        caption: None if the example has none.
        condition: the file or bytes of the control image.
        references: the files or bytes of the images to edit.
        mask: the file or bytes of the mask of the part that is painted.
    """

    place: str
    name: str
    origin: Path | bytes = field(repr=False)
    caption: str | None
    condition: Path | bytes | None = field(default=None, repr=False)
    references: tuple[Path | bytes, ...] = field(default=(), repr=False)
    mask: Path | bytes | None = field(default=None, repr=False)


def from_file(path: Path) -> list[CaptionRow]:
    """The rows of a table; paths in it are relative to its folder.

    Raises:
        DataError: there is no such file, a line is broken, or there are no rows, or a row has no image.
    """
    if path.suffix not in SUFFIXES:
        got = "nothing there" if not path.exists() else "a file"
        raise DataError(
            f"data {path}", got=got, needed=f"a folder of images, or a file ending in {', '.join(SUFFIXES)}"
        )
    return from_rows(read_rows(path), path.parent, str(path))


def from_hub(source: str) -> list[CaptionRow]:
    """The rows of a data set of the hub, ``NAME`` or ``NAME:SPLIT``, or of a folder that ``datasets`` can read.

    Raises:
        DataError: there is no such data set, or a row has no image.
    """
    import datasets

    loaded = load_split(source)
    for name, feature in loaded.features.items():
        if isinstance(feature, datasets.Image):
            # Not decoded by ``datasets``, so that broken images are reported by name instead of ending the iteration.
            loaded = loaded.cast_column(name, datasets.Image(decode=False))
    return from_rows(((f"{source}, row {number}", row) for number, row in enumerate(loaded)), Path(), source)


def from_rows(rows: Iterable[tuple[str, Row]], folder: Path, source: str) -> list[CaptionRow]:
    """The rows of a table as captioned images.

    Args:
        rows: each with its place, for messages.
        folder: to which paths are relative.
        source: name of the table, for messages.

    Raises:
        DataError: there are no rows, or a row has no image or a caption that is not text.

    Example:
        >>> from_rows([("line 1", {"file_name": "a/é.png", "text": "an e"})], Path("data"), "x")[0].name
        'a/é'
    """
    found = [_caption_row(place, row, folder, number) for number, (place, row) in enumerate(rows)]
    if not found:
        raise DataError(f"data {source}", got="no rows", needed="at least one image")
    return found


def _caption_row(place: str, row: Row, folder: Path, number: int) -> CaptionRow:
    column = _first(row, IMAGE)
    if column is None:
        known = ", ".join(sorted(row)) or "none"
        raise DataError(place, got=f"columns {known}", needed=f"an image under {' or '.join(IMAGE)}")
    caption = _first(row, CAPTION)
    text = row[caption] if caption else None
    if text is not None and not isinstance(text, str):
        raise DataError(
            f"{place}: column {caption!r}", got=f"{type(text).__name__} {str(text)[:40]!r}", needed="a text"
        )
    control, mask = _first(row, CONDITION), _first(row, MASK)
    path = row[column].get("path") if isinstance(row[column], dict) else row[column]
    name = PurePosixPath(path).with_suffix("").as_posix() if isinstance(path, str) and path else f"row-{number:06}"
    return CaptionRow(
        place,
        name,
        _origin(row[column], folder, f"{place}: column {column!r}"),
        " ".join((text or "").split()) or None,
        _origin(row[control], folder, f"{place}: column {control!r}") if control else None,
        _references(row, folder, place),
        _origin(row[mask], folder, f"{place}: column {mask!r}") if mask else None,
    )


def _references(row: Row, folder: Path, place: str) -> tuple[Path | bytes, ...]:
    listed = row.get(REFERENCES)
    if isinstance(listed, list):
        return tuple(_origin(value, folder, f"{place}: column {REFERENCES!r}") for value in listed)
    columns = [column for names in REFERENCE if (column := _first(row, names))]
    return tuple(_origin(row[column], folder, f"{place}: column {column!r}") for column in columns)


def _first(row: Row, columns: tuple[str, ...]) -> str | None:
    return next((column for column in columns if row.get(column) is not None), None)


def _origin(value: Any, folder: Path, given: str) -> Path | bytes:
    """The file or the bytes of an image: a path, bytes, or the hub's ``{"bytes": ..., "path": ...}``."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes) and value:
        return value
    if isinstance(value, str) and value:
        return folder / value
    raise DataError(given, got=f"{type(value).__name__} {str(value)[:40]!r}", needed="a path, or the bytes of an image")
