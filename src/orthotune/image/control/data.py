"""Captioned images with control images: paired by name, by a table, or computed from the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from orthotune.errors import ConfigError, DataError
from orthotune.image.control.conditions import landmarks
from orthotune.image.control.conditions.kind import Condition
from orthotune.image.data.buckets import Fit, fitted
from orthotune.image.data.captions import Example, opened, read_caption_rows, with_captions
from orthotune.image.data.image_folder import Broken, Say, in_memory_image
from orthotune.metrics.image_files import find_images, open_image
from orthotune.metrics.landmarks import read_points


def control_examples(
    source: str | Path,
    kind: Condition,
    conditions: Path | None = None,
    *,
    caption: str | None = None,
    broken: Broken = "skip",
    say: Say = print,
) -> list[Example]:
    """Captioned images of ``source`` (as :func:`orthotune.image.data.captions.read_examples` finds them) with control
    images of one kind.

    Args:
        source: a folder, a table or a data set of the hub.
        kind: from :func:`orthotune.image.control.conditions.registry.condition`.
        conditions: a folder with a control image of the same name for each image, or for landmarks a JSON file
            ``{"name": [[x, y], ...]}``. Without it they come from the table's ``conditioning_image``, and where the
            table has none, they are made of the images when those are read.
        caption: for images that have none.
        broken: ``skip`` or ``refuse`` images that cannot be read.
        say: gets a message about images that are skipped.

    Raises:
        DataError: an image has no control image, or one of another size; the message names it.
        ConfigError: no control images are given, and this kind cannot be computed.

    Example:
        >>> control_examples("faces/", condition("landmark"), Path("points.json"))  # doctest: +SKIP
    """
    rows = read_caption_rows(source)
    points = None
    if conditions is not None:
        conditions = Path(conditions)
        # The folder of control images may be inside the folder of images.
        rows = [row for row in rows if not (isinstance(row.origin, Path) and _within(row.origin, conditions))]
        points = read_points(conditions) if kind.points and conditions.is_file() else None
        known: dict[str, Any] = points if points is not None else dict(find_images(conditions))
        _need([row.name for row in rows], set(known), conditions)
        if points is None:
            rows = [replace(row, condition=known[row.name]) for row in rows]
    elif any(row.condition is not None for row in rows):
        _need([row.place for row in rows], {row.place for row in rows if row.condition is not None}, source)
    elif kind.make is None:
        raise ConfigError(
            f"condition {kind.name} of {source}", got="no control images", needed=kind.shows,
            do="Pass conditions=FOLDER, or a table with conditioning_image",
        )  # fmt: skip
    rows = with_captions(rows, source, caption)
    examples = opened(rows, source, broken, say)
    if points is not None:
        return [_with_points(example, points[example.image.name]) for example in examples]
    check_sizes(examples)
    return examples


def check_sizes(examples: Sequence[Example]) -> None:
    """Check that control images have the size of their images.

    Raises:
        DataError: some have another size; the message names the first of them.
    """
    wrong = [
        f"{one.image.name} ({one.condition.width} x {one.condition.height} instead of "
        f"{one.image.width} x {one.image.height})"
        for one in examples
        if one.condition is not None and (one.condition.height, one.condition.width) != _size(one)
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise DataError(
            f"{len(wrong)} of {len(examples)} control images", got=", ".join(wrong[:3]) + more,
            needed="the size of the image that each belongs to", do="Resize them",
        )  # fmt: skip


def hint_of(example: Example, kind: Condition, how: Fit, pixels: Any) -> Any:
    """The control image for a crop of an image, ``(height, width, 3)`` uint8.

    A control image from a file is resized and cropped like its image. Otherwise it is computed from ``pixels``.

    Args:
        example: the image, with its control image if it has one.
        kind: of the control image.
        how: size and crop of the image.
        pixels: the crop of the image, ``(height, width, 3)`` uint8.

    Raises:
        DataError: the control image cannot be read as this kind, or has another size than its image.
        ConfigError: the control image cannot be computed.
    """
    if example.condition is None:
        return kind.made(pixels)
    given = f"control image {example.condition.name}"
    found = kind.read(open_image(example.condition.origin, given), given)
    if found.shape[:2] != _size(example):
        check_sizes([replace(example, condition=in_memory_image(found, example.condition.name))])
    return fitted(found, how, kind.sharp)


def _size(example: Example) -> tuple[int, int]:
    return example.image.height, example.image.width


def _within(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


def _need(wanted: Sequence[str], known: set[str], where: str | Path) -> None:
    missing = [name for name in wanted if name not in known]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DataError(
            f"control images in {where}", got=f"none for {', '.join(missing[:3])}{more}, of {len(wanted)} images",
            needed="one of the same name for each image, or conditioning_image in each row of a table",
        )  # fmt: skip


def _with_points(example: Example, points: Any) -> Example:
    pixels = landmarks.draw(points, *_size(example))
    return replace(example, condition=in_memory_image(pixels, example.image.name))
