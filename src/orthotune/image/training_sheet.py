"""The images that a run learns from, on one small sheet for its report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orthotune.files.atomic import atomic_write
from orthotune.image.adapter.prior import WithPrior
from orthotune.image.held_out import Part
from orthotune.image.loop.order import Dataset
from orthotune.metrics.contact_sheet import cell_for_screen, draw_sheet

#: Most images on the sheet.
MOST = 8


def draw_training(data: Dataset, path: Path) -> bool:
    """Write a PNG of the first images that a run learns from, each once, without class images.

    Args:
        data: of the run.
        path: the file to write.

    Returns:
        False for a data set that does not hold images themselves.

    Raises:
        DataError: an image is no longer readable.
    """
    if isinstance(data, WithPrior):
        data = data.subject
    indices = data.indices if isinstance(data, Part) else range(len(data))
    examples: list[Any] = getattr(data.data if isinstance(data, Part) else data, "examples", [])
    shown = {examples[index].image.key: examples[index].image for index in indices if index < len(examples)}
    if not shown:
        return False
    chosen = list(shown.values())[:MOST]
    images = [image.pixels() for image in chosen]
    names = [image.name.rpartition("/")[2][:20] for image in chosen]
    with atomic_write(path) as partial:
        draw_sheet(names, [("", images)], partial, cell_for_screen(len(images), 1))
    return True
