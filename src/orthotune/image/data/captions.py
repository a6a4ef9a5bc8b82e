"""What is said of each picture: in a text file beside it, in a table, or the same of all."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orthotune.errors import DataError
from orthotune.image.data import caption_tables
from orthotune.image.data.caption_tables import Said
from orthotune.image.data.image_folder import Broken, Picture, Say, open_pictures
from orthotune.metrics.image_files import SUFFIXES, find_images

#: Read when it lies in the folder, as the hub's image folders have it.
METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class Example:
    """An image, what is said of it, and the control image that belongs to it, if one does."""

    picture: Picture
    caption: str
    condition: Picture | None = None


def read_examples(
    source: str | Path, *, caption: str | None = None, broken: Broken = "skip", say: Say = print
) -> list[Example]:
    """The captioned images of a folder, a table, or the hub's data set ``NAME`` or ``NAME:SPLIT``.

    A folder: with a ``metadata.jsonl``, the images that it lists; else each image with the ``.txt`` file of its
    name; without images, the ``.parquet`` files in it. A ``.jsonl``, ``.json`` or ``.parquet`` file: one image
    per row, under ``file_name`` or ``image`` (a path from the file's folder, or the image itself), its caption under
    ``text``, ``prompt`` or ``caption``, a control image under ``conditioning_image``.

    Args:
        source: the folder, the table, or the name of the data set.
        caption: of images that have none; without a caption for them, they are an error.
        broken: ``skip`` skips images that cannot be read, with a message; ``refuse`` makes them an error.
        say: gets the message.

    Raises:
        DataError: nothing there, a broken line, a missing caption, no image that can be read.

    Example:
        >>> read_examples("birds/")[0].caption  # doctest: +SKIP
        'a robin on a fence'
    """
    said = read_said(source)
    said = with_captions(said, source, caption)
    return opened(said, source, broken, say)


def read_said(source: str | Path) -> list[Said]:
    """The rows of ``source``, whichever kind it is; no image is opened yet."""
    path = Path(source)
    if path.is_dir():
        if (path / METADATA).is_file():
            return caption_tables.from_file(path / METADATA)
        tables = sorted(path.rglob("*.parquet"))
        if tables and not any(file.suffix.lower() in SUFFIXES for file in path.rglob("*")):
            return [row for table in tables for row in caption_tables.from_file(table)]
        return [_beside(name, file) for name, file in find_images(path).items()]
    if path.exists() or path.suffix in caption_tables.SUFFIXES or str(source).startswith((".", "/", "~")):
        return caption_tables.from_file(path)
    return caption_tables.from_hub(str(source))


def with_captions(said: Sequence[Said], source: str | Path, default: str | None) -> list[Said]:
    """``said`` with ``default`` where there was no caption.

    Raises:
        DataError: captions are missing and there is no default; the first places are named.
    """
    missing = [row.place for row in said if row.caption is None]
    if missing and default is None:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DataError(
            f"captions of {source}",
            got=f"none for {', '.join(missing[:3])}{more}",
            needed='a .txt file beside each picture, or "text" in each row of a table',
            do='Add them, or pass caption="..." for pictures without one',
        )
    return [replace(row, caption=default) if row.caption is None else row for row in said]


def opened(said: Sequence[Said], source: str | Path, broken: Broken, say: Say) -> list[Example]:
    """Look at every file that ``said`` names; an image whose control image is broken goes with it.

    Raises:
        DataError: a control image is missing, no image can be read, or, with ``broken="refuse"``, one cannot.
    """
    files = [(row.condition, row.place) for row in said if isinstance(row.condition, Path)]
    lost = [f"{file} ({place})" for file, place in files if not file.is_file()]
    if lost:
        more = f", and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise DataError(f"control pictures of {source}", got=f"nothing at {', '.join(lost[:3])}{more}")
    pictures = open_pictures([(row.name, row.origin) for row in said], f"in {source}", broken, say)
    controlled = [row for row in said if row.condition is not None]
    conditions: dict[int, Picture | None] = {}
    if controlled:
        origins = [(row.name, row.condition) for row in controlled if row.condition is not None]
        seen = open_pictures(origins, f"among the control pictures of {source}", broken, say)
        conditions = {id(row): condition for row, condition in zip(controlled, seen, strict=True)}
    examples = []
    for row, picture in zip(said, pictures, strict=True):
        if picture is not None and not (row.condition is not None and conditions[id(row)] is None):
            examples.append(Example(picture, row.caption or "", conditions.get(id(row))))
    if not examples:
        raise DataError(f"data {source}", got="no picture whose control picture can be read too")
    return examples


def all_said(pictures: Iterable[Picture], caption: str) -> list[Example]:
    """Every image with one caption, as a subject is taught.

    Example:
        >>> all_said([Picture("0", b"", 32, 32)], "a sks dog")[0].caption
        'a sks dog'
    """
    return [Example(picture, caption) for picture in pictures]


def dropping(share: float, seed: int) -> Callable[[str, int], str]:
    """A function of (caption, index) that empties about ``share`` of them, always the same for one index and seed.

    A model needs to have seen the empty caption to be guided away from it (Ho and Salimans 2022, arXiv 2207.12598).

    Example:
        >>> drop = dropping(0.1, seed=0)
        >>> sum(drop("a cat", index) == "" for index in range(1000))
        113
    """
    if not 0 <= share <= 1:
        raise DataError(f"caption_dropout={share}", needed="a share from 0 to 1")

    def drop(caption: str, index: int) -> str:
        return "" if share and random.Random(f"{seed} caption {index}").random() < share else caption

    return drop


def _beside(name: str, file: Path) -> Said:
    text = file.with_suffix(".txt")
    try:
        caption = " ".join(text.read_text(encoding="utf-8-sig").split()) if text.is_file() else ""
    except UnicodeDecodeError as fault:
        raise DataError(f"caption {text}", got=f"bytes that are not UTF-8 at position {fault.start}") from fault
    return Said(str(file), name, file, caption or None)
