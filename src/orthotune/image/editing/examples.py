"""Images with what they are made of: reference images with an instruction, or a mask of the part that is painted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from orthotune.errors import DataError
from orthotune.image.data.caption_tables import CaptionRow
from orthotune.image.data.captions import Example, read_caption_rows, with_captions
from orthotune.image.data.image_folder import Broken, ImageFile, Say, name_unread, open_images
from orthotune.image.data.other_trainers import repeated
from orthotune.metrics.image_files import find_images

#: the value of ``masks`` for rectangles at random places
RANDOM = "random"


@dataclass(frozen=True)
class EditExample(Example):
    """An image with the images that it is made of.

    Args:
        references: the images to edit, in the order in which the model reads them.
        mask: white where the model paints; None for a mask at random, and for models without masks.
    """

    references: tuple[ImageFile, ...] = ()
    mask: ImageFile | None = None


def read_edits(
    source: str | Path, references: Sequence[Path] = (), masks: str | None = None, *, caption: str | None = None,
    broken: Broken = "skip", say: Say = print,
) -> list[EditExample]:  # fmt: skip
    """Read images with instructions, as :func:`orthotune.image.data.captions.read_examples` reads captioned images.

    A row of a table has its references under ``reference`` (``source_image``, ``input_image``), ``reference_2`` and
    ``reference_3``, or as a list under ``references``, and its mask under ``mask``.

    Args:
        source: folder, table or data set of the hub with the images that the model is to make.
        references: folders of images to edit, each with an image of the same name for every image: the first
            reference, the second, the third.
        masks: a folder of masks of the same names, white where is painted; ``random`` for rectangles at random places.
        caption: the instruction of images that have none.
        broken: ``skip`` or ``refuse`` images that cannot be read.
        say: gets messages about skipped images.

    Raises:
        DataError: an image has no reference or mask, another number of references than the first one, or a mask of
            another size; the message names it.

    Example:
        >>> read_edits("after/", [Path("before/")])[0].caption  # doctest: +SKIP
        'remove the car'
    """
    rows = read_caption_rows(source)
    if Path(source).is_dir():
        name_unread(Path(source), say)
        rows = repeated(rows, say)
    folders = [*references, *([Path(masks)] if masks not in (None, RANDOM) else [])]
    # Folders of references and masks may be inside of the folder of images.
    rows = [row for row in rows if not any(_within(row.origin, folder) for folder in folders)]
    for number, folder in enumerate(references):
        found = _of_each(rows, folder, "reference images")
        known = [row.references[:number] for row in rows]
        rows = [replace(row, references=(*more, found[row.name])) for row, more in zip(rows, known, strict=True)]
    if masks not in (None, RANDOM):
        found = _of_each(rows, Path(str(masks)), "masks")
        rows = [replace(row, mask=found[row.name]) for row in rows]
    rows = with_captions(rows, source, caption)
    _check_counts(rows, source)
    return _opened(rows, source, broken, say)


def _of_each(rows: Sequence[CaptionRow], folder: Path, what: str) -> dict[str, Path]:
    known = dict(find_images(folder))
    missing = [row.name for row in rows if row.name not in known]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DataError(
            f"{what} in {folder}", got=f"none for {', '.join(missing[:3])}{more}, of {len(rows)} images",
            needed="one of the same name for each image",
        )  # fmt: skip
    return known


def _check_counts(rows: Sequence[CaptionRow], source: str | Path) -> None:
    for field in ("references", "mask"):
        counts = [_count(getattr(row, field)) for row in rows]
        other = next((row for row, count in zip(rows, counts, strict=True) if count != counts[0]), None)
        if other is not None:
            raise DataError(
                f"{field} of {source}", got=f"{_count(getattr(other, field))} at {other.place}, {counts[0]} at "
                f"{rows[0].place}", needed="the same number for every image",
            )  # fmt: skip


def _count(value: Any) -> int:
    return len(value) if isinstance(value, tuple) else int(value is not None)


def _opened(rows: Sequence[CaptionRow], source: str | Path, broken: Broken, say: Say) -> list[EditExample]:
    where = f"among the references and masks of {source}"
    origins = [(row.name, origin) for row in rows for origin in _beside(row)]
    seen = iter(open_images(origins, where, broken, say) if origins else [])
    beside = [[next(seen) for _ in _beside(row)] for row in rows]
    complete = [(row, found) for row, found in zip(rows, beside, strict=True) if all(one is not None for one in found)]
    if not complete:
        raise DataError(f"data {source}", got="no image whose references and mask are readable")
    images = open_images([(row.name, row.origin) for row, _ in complete], f"in {source}", broken, say)
    made = []
    for image, (row, found) in zip(images, complete, strict=True):
        if image is not None:
            files = [one for one in found if one is not None]
            mask = files.pop() if row.mask is not None else None
            made.append(EditExample(image, row.caption or "", None, tuple(files), mask))
    wrong = [one.image.name for one in made if one.mask is not None and _size(one.mask) != _size(one.image)]
    if wrong:
        raise DataError(
            f"masks of {source}", got=f"another size for {', '.join(wrong[:3])}", needed="that of the image"
        )
    return made


def _beside(row: CaptionRow) -> list[Path | bytes]:
    return [*row.references, *([] if row.mask is None else [row.mask])]


def _size(file: ImageFile) -> tuple[int, int]:
    return file.height, file.width


def _within(path: Path | bytes, folder: Path) -> bool:
    return isinstance(path, Path) and folder.resolve() in path.resolve().parents
