"""Depth maps from files: near is white."""

from __future__ import annotations

from typing import Any

from orthotune.errors import DataError
from orthotune.image.control.conditions.kind import Condition, read_colours
from orthotune.metrics.image_files import DEEP


def read(image: Any, said: str) -> Any:
    """Maps of 8 bits as they are; deeper ones, of any unit, from their least value (black) to their greatest (white).

    Shapes: an image of Pillow to ``(height, width, 3)`` uint8.

    Raises:
        DataError: a deep map with values that are not numbers, or with one value only.
    """
    import numpy as np

    if image.mode not in DEEP:
        return read_colours(image, said)
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all() or values.min() == values.max():
        raise DataError(said, got="values that are no depths (none differ, or some are not numbers)")
    scaled = (values - values.min()) / (values.max() - values.min())
    return np.repeat(np.round(scaled * 255).astype(np.uint8)[..., None], 3, axis=2)


KIND = Condition("depth", "depth maps, near is white; 16-bit and float maps are stretched", read=read)
