"""Read captioned images and clips: captions from text files, from a table, or one caption for all."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from orthotune.errors import DataError
from orthotune.image.data import caption_tables
from orthotune.image.data.caption_tables import CaptionRow
from orthotune.image.data.clips import clip_suffixes
from orthotune.image.data.image_folder import Broken, ImageFile, Say, name_unread, open_images
from orthotune.image.data.masks import is_mask
from orthotune.image.data.other_trainers import caption_beside, of_several_lines, repeated
from orthotune.metrics.image_files import SUFFIXES, find_images

#: The table in an image folder, as in image folders of the hub.
METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class Example:
    """An image with its caption and optional control image."""

    image: ImageFile
    caption: str
    condition: ImageFile | None = None


def read_examples(
    source: str | Path, *, caption: str | None = None, broken: Broken = "skip", say: Say = print, frames: int = 1
) -> list[Example]:
    """Read the captioned images of a folder, a table, or a data set of the hub, ``NAME`` or ``NAME:SPLIT``.

    In a folder with ``metadata.jsonl``, the images are those that it lists. In another folder with images, the caption
    of an image is in the ``.txt``, ``.caption`` or ``.json`` file of the same name; in kohya's layout, ``10_sks cat``,
    the words of a subfolder caption its images and its number counts how often they are seen. In a folder without
    images, the ``.parquet`` files are read. A ``.jsonl``, ``.json`` or ``.parquet`` file has one image per row, under
    ``file_name`` or ``image`` (a path relative to the folder of the file, or the image itself), the caption under
    ``text``, ``prompt`` or ``caption``, and a control image under ``conditioning_image``.

    Args:
        source: the folder, the table, or the name of the data set.
        caption: for images that have none; without it, such images are an error.
        broken: ``skip`` skips unreadable images, with a message; ``refuse`` makes them an error.
        say: gets the message.
        frames: of a clip. Above 1, animated images, films and folders ``NAME.frames`` of numbered images are clips,
            with their captions beside them; those with fewer frames count as unreadable. Images stay images.

    Raises:
        DataError: the source does not exist, a line is broken, a caption is missing, or no image is readable.

    Example:
        >>> read_examples("birds/")[0].caption  # doctest: +SKIP
        'a robin on a fence'
    """
    rows = read_caption_rows(source, frames)
    if Path(source).is_dir():
        name_unread(Path(source), say, frames)
        for message in of_several_lines(row.origin for row in rows if isinstance(row.origin, Path)):
            say(message)
        rows = repeated(rows, say)
    rows = with_captions(rows, source, caption)
    return opened(rows, source, broken, say, frames)


def read_caption_rows(source: str | Path, frames: int = 1) -> list[CaptionRow]:
    """The rows of a source of any kind; no image is opened yet.

    Args:
        source: as for :func:`read_examples`.
        frames: as for :func:`read_examples`.
    """
    path = Path(source)
    if path.is_dir():
        if (path / METADATA).is_file():
            return caption_tables.from_file(path / METADATA)
        tables = sorted(path.rglob("*.parquet"))
        clips = clip_suffixes(frames)
        if tables and not any(file.suffix.lower() in (*SUFFIXES, *clips) for file in path.rglob("*")):
            return [row for table in tables for row in caption_tables.from_file(table)]
        found = find_images(path, clips)
        return [_beside(name, file) for name, file in found.items() if not is_mask(name, found)]
    if path.exists() or path.suffix in caption_tables.SUFFIXES or str(source).startswith((".", "/", "~")):
        return caption_tables.from_file(path)
    return caption_tables.from_hub(str(source))


def with_captions(rows: Sequence[CaptionRow], source: str | Path, default: str | None) -> list[CaptionRow]:
    """Fill in a default caption.

    Args:
        rows: the examples.
        source: of the rows, for messages.
        default: caption for rows without one; None makes them an error.

    Raises:
        DataError: captions are missing and there is no default; the message names the first places.
    """
    missing = [row.place for row in rows if row.caption is None]
    if missing and default is None:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DataError(
            f"captions of {source}",
            got=f"none for {', '.join(missing[:3])}{more}",
            needed='a .txt, .caption or .json file beside each image, or "text" in each row of a table',
            do='Add them, or pass caption="..." for images without one',
        )
    return [replace(row, caption=default) if row.caption is None else row for row in rows]


def opened(rows: Sequence[CaptionRow], source: str | Path, broken: Broken, say: Say, frames: int = 1) -> list[Example]:
    """Open the image and control image of each row. An image with a broken control image is skipped as well.

    Args:
        rows: the examples.
        source: of the rows, for messages.
        broken: ``skip`` or ``refuse`` unreadable images.
        say: gets a message about skipped images.
        frames: as for :func:`read_examples`.

    Raises:
        DataError: a control image is missing, no image is readable, or, with ``broken="refuse"``, an image is not.
    """
    files = [(row.condition, row.place) for row in rows if isinstance(row.condition, Path)]
    lost = [f"{file} ({place})" for file, place in files if not file.is_file()]
    if lost:
        more = f", and {len(lost) - 3} more" if len(lost) > 3 else ""
        raise DataError(f"control images of {source}", got=f"no file at {', '.join(lost[:3])}{more}")
    images = open_images([(row.name, row.origin) for row in rows], f"in {source}", broken, say, frames)
    controlled = [row for row in rows if row.condition is not None]
    conditions: dict[int, ImageFile | None] = {}
    if controlled:
        origins = [(row.name, row.condition) for row in controlled if row.condition is not None]
        seen = open_images(origins, f"among the control images of {source}", broken, say)
        conditions = {id(row): condition for row, condition in zip(controlled, seen, strict=True)}
    examples = []
    for row, image in zip(rows, images, strict=True):
        if image is not None and not (row.condition is not None and conditions[id(row)] is None):
            examples.append(Example(image, row.caption or "", conditions.get(id(row))))
    if not examples:
        raise DataError(f"data {source}", got="no readable image with a readable control image")
    return examples


def with_one_caption(images: Iterable[ImageFile], caption: str) -> list[Example]:
    """Give all images the same caption.

    Args:
        images: the images.
        caption: of each of them.

    Example:
        >>> with_one_caption([ImageFile("0", b"", 32, 32)], "a sks dog")[0].caption
        'a sks dog'
    """
    return [Example(image, caption) for image in images]


def dropping(share: float, seed: int) -> Callable[[str, int], str]:
    """Caption dropout: a function of caption and index that empties a share of the captions, reproducibly.

    Classifier-free guidance needs a model that was trained on the empty caption (Ho and Salimans 2022, arXiv
    2207.12598).

    Args:
        share: of captions to empty, from 0 to 1.
        seed: of the choice, which depends on the index and the seed only.

    Raises:
        DataError: ``share`` is outside 0 to 1.

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


def _beside(name: str, file: Path) -> CaptionRow:
    return CaptionRow(str(file), name, file, caption_beside(file))
