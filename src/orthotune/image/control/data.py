"""Pictures with captions and control pictures: paired by name, by a table, or made of the pictures themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from orthotune.errors import ConfigError, DataError
from orthotune.image.control.conditions import landmarks
from orthotune.image.control.conditions.kind import Condition
from orthotune.image.data.buckets import Fit, fitted
from orthotune.image.data.captions import Example, opened, read_said, with_captions
from orthotune.image.data.image_folder import Broken, Say, picture_of
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
        caption: of images that have none.
        broken: what happens to images that cannot be read.
        say: gets a message about images that are skipped.

    Raises:
        DataError: an image without its control image, or one of another size, named.
        ConfigError: no control images, and this kind cannot be made.

    Example:
        >>> control_examples("faces/", condition("landmark"), Path("points.json"))  # doctest: +SKIP
    """
    said = read_said(source)
    points = None
    if conditions is not None:
        conditions = Path(conditions)
        # A folder of images may hold that of their control images.
        said = [row for row in said if not (isinstance(row.origin, Path) and _within(row.origin, conditions))]
        points = read_points(conditions) if kind.points and conditions.is_file() else None
        known: dict[str, Any] = points if points is not None else dict(find_images(conditions))
        _need([row.name for row in said], set(known), conditions)
        if points is None:
            said = [replace(row, condition=known[row.name]) for row in said]
    elif any(row.condition is not None for row in said):
        _need([row.place for row in said], {row.place for row in said if row.condition is not None}, source)
    elif kind.make is None:
        raise ConfigError(
            f"condition {kind.name} of {source}", got="no control pictures", needed=kind.shows,
            do="Pass conditions=FOLDER, or a table with conditioning_image",
        )  # fmt: skip
    said = with_captions(said, source, caption)
    examples = opened(said, source, broken, say)
    if points is not None:
        return [_drawn(example, points[example.picture.name]) for example in examples]
    check_sizes(examples)
    return examples


def check_sizes(examples: Sequence[Example]) -> None:
    """Refuse control images of another size than their images.

    Raises:
        DataError: there are some; the first ones are named.
    """
    wrong = [
        f"{one.picture.name} ({one.condition.width} x {one.condition.height} instead of "
        f"{one.picture.width} x {one.picture.height})"
        for one in examples
        if one.condition is not None and (one.condition.height, one.condition.width) != _size(one)
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise DataError(
            f"{len(wrong)} of {len(examples)} control pictures", got=", ".join(wrong[:3]) + more,
            needed="the size of the picture that each belongs to", do="Resize them",
        )  # fmt: skip


def hint_of(example: Example, kind: Condition, how: Fit, pixels: Any) -> Any:
    """The control image that belongs to the part ``how`` of an image; ``(height, width, 3)`` uint8 array.

    One from a file goes the way of its image: resized and cut alike. One that is made is made of ``pixels``, the
    part itself.

    Raises:
        DataError: it cannot be read as this kind, or has another size than its image.
        ConfigError: it cannot be made.
    """
    if example.condition is None:
        return kind.made(pixels)
    said = f"control picture {example.condition.name}"
    found = kind.read(open_image(example.condition.origin, said), said)
    if found.shape[:2] != _size(example):
        check_sizes([replace(example, condition=picture_of(found, example.condition.name))])
    return fitted(found, how, kind.sharp)


def _size(example: Example) -> tuple[int, int]:
    return example.picture.height, example.picture.width


def _within(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


def _need(wanted: Sequence[str], known: set[str], where: str | Path) -> None:
    missing = [name for name in wanted if name not in known]
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DataError(
            f"control pictures in {where}", got=f"none for {', '.join(missing[:3])}{more}, of {len(wanted)} pictures",
            needed="one of the same name for each picture, or conditioning_image in each row of a table",
        )  # fmt: skip


def _drawn(example: Example, points: Any) -> Example:
    pixels = landmarks.draw(points, *_size(example))
    return replace(example, condition=picture_of(pixels, example.picture.name))
