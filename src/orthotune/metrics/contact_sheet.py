"""A contact sheet: one row of images per example, to look at beside the scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

CELL, GAP, LINE = 192, 8, 18
#: Pixels of a screen that a sheet fits into where it is asked to, and the smallest image that still shows something.
SCREEN, SMALLEST = (1600, 950), 48


def cell_for_screen(columns: int, rows: int) -> int:
    """The side of the images with which a sheet fits a screen, in pixels.

    Args:
        columns: of the sheet.
        rows: of the sheet.

    Example:
        >>> cell_for_screen(6, 2), cell_for_screen(6, 8)
        (192, 89)
    """
    wide = (SCREEN[0] - GAP) // max(1, columns) - GAP
    high = (SCREEN[1] - GAP - LINE) // max(1, rows) - GAP - LINE
    return max(SMALLEST, min(CELL, wide, high))


def draw_sheet(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Any]]], path: Path, cell: int = CELL) -> None:
    """Write a PNG: a line of column names, then for each row its name and its images, fitted into squares.

    Args:
        columns: names of the columns.
        rows: name and images of each row.
        path: the file to write.
        cell: side of the squares, in pixels.

    Shapes: images ``(height, width, 3)`` uint8 arrays.

    Example:
        >>> draw_sheet(["condition", "result"], [("cat", [edges, image])], Path("sheet.png"))  # doctest: +SKIP
    """
    from PIL import Image, ImageDraw

    fitted = [(name, [_fit(Image.fromarray(one), cell) for one in row]) for name, row in rows]
    heights = [LINE + max((image.height for image in images), default=0) + GAP for _, images in fitted]
    sheet = Image.new("RGB", (GAP + len(columns) * (cell + GAP), GAP + LINE + sum(heights)), "white")
    pen = ImageDraw.Draw(sheet)
    for index, column in enumerate(columns):
        pen.text((GAP + index * (cell + GAP), GAP // 2), column, fill="black")
    top = GAP + LINE
    for (name, images), height in zip(fitted, heights, strict=True):
        pen.text((GAP, top), name, fill="#555555")
        for index, image in enumerate(images):
            sheet.paste(image, (GAP + index * (cell + GAP), top + LINE))
        top += height
    sheet.save(path, format="PNG")


def _fit(image: Any, cell: int) -> Any:
    from PIL import Image

    scale = cell / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    # Small images are enlarged without interpolation: a blurred edge map would not show what was measured.
    return image.resize((width, height), Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
