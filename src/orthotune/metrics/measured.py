"""The result of a measure over images: scores, one row per image, skipped files, and images for the contact sheet."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from orthotune.errors import DataError

#: Most rows of the contact sheet; further images are measured but not shown.
SHEET_ROWS = 12
Item = TypeVar("Item")


@dataclass
class Measured:
    """The outcome of one measure.

    Args:
        measure: name of the measure in the registry.
        summary: the scores over all images.
        rows: the scores of each image, with its name under ``name``.
        skipped: a description of each skipped file, with the reason.
        settings: the settings that the scores depend on.
        sheet: rows of the contact sheet: name, and images as ``(height, width, 3)`` uint8 arrays.
        columns: titles of the columns of the sheet.
    """

    measure: str
    summary: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    sheet: list[tuple[str, list[Any]]] = field(default_factory=list)
    columns: tuple[str, ...] = ("condition", "result", "re-extracted condition")

    def show(self, name: str, *images: Any) -> None:
        """Add a row to the contact sheet, unless the sheet is full."""
        if len(self.sheet) < SHEET_ROWS:
            self.sheet.append((name, list(images)))

    def mean_of_rows(self, *keys: str) -> None:
        """Put the mean of each key over all images into the summary.

        Raises:
            DataError: no image was measured.
        """
        if not self.rows:
            why = f" ({'; '.join(self.skipped[:3])})" if self.skipped else ""
            raise DataError(self.measure, got=f"not one image that could be measured{why}")
        self.summary |= {key: sum(row[key] for row in self.rows) / len(self.rows) for key in keys}

    def record(self) -> dict[str, Any]:
        """All values except the images, ready for JSON."""
        return {
            "measure": self.measure,
            "images": len(self.rows),
            "skipped": len(self.skipped),
            "summary": self.summary,
            "settings": self.settings,
            "why_skipped": self.skipped,
            "rows": self.rows,
        }


def readable(
    items: Iterable[Item], read: Callable[[Item], Any], measured: Measured, strict: bool
) -> Iterator[tuple[Item, Any]]:
    """Each item with its content; a file that cannot be read is recorded as skipped, or an error when ``strict``.

    Args:
        items: what to read.
        read: returns the content of an item.
        measured: gets a description of each skipped item.
        strict: raise instead of skipping.

    Yields:
        The item and its content.

    Raises:
        DataError: ``strict``, and a file cannot be read.

    Example:
        >>> list(readable([1, 2], lambda item: -item, Measured("x"), strict=True))
        [(1, -1), (2, -2)]
    """
    for item in items:
        try:
            content = read(item)
        except DataError as fault:
            if strict:
                raise
            measured.skipped.append(str(fault))
            continue
        yield item, content


def batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """``items`` in lists of ``size``; the last list may be shorter.

    Args:
        items: any number of items.
        size: items per list.

    Example:
        >>> list(batches("abc", 2))
        [['a', 'b'], ['c']]
    """
    source = iter(items)
    while batch := list(islice(source, size)):
        yield batch


def noted(missing: list[str], measured: Measured, strict: bool) -> None:
    """Record files without a partner as skipped, or raise when ``strict``.

    Args:
        missing: a description of each such file.
        measured: gets the descriptions.
        strict: raise instead of skipping.

    Raises:
        DataError: ``strict``, and something is missing.
    """
    if missing and strict:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DataError(measured.measure, got="; ".join(missing[:3]) + more, do="Leave --strict out to count the rest")
    measured.skipped += missing


def same_size(name: str, result: Any, condition: Any, resize: bool) -> Any:
    """``result`` in the size of ``condition``.

    Args:
        name: of the result, for messages.
        result: ``(height, width, 3)`` uint8.
        condition: an array whose first two dimensions are height and width.
        resize: resize the result; otherwise another size is an error.

    Raises:
        DataError: the sizes differ and ``resize`` is off.
    """
    import numpy as np
    from PIL import Image

    height, width = condition.shape[:2]
    if result.shape[:2] == (height, width):
        return result
    if not resize:
        raise DataError(
            f"result {name}", got=f"{result.shape[1]} x {result.shape[0]} pixels", needed=f"{width} x {height}, as its "
            "condition", do="Resize it, or add --resize",
        )  # fmt: skip
    return np.array(Image.fromarray(result).resize((width, height), Image.Resampling.BICUBIC))
