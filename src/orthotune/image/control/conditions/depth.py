"""Depth maps from files; white is near."""

from __future__ import annotations

from typing import Any

from orthotune.errors import DataError
from orthotune.image.control.conditions.kind import Condition, read_colours
from orthotune.metrics.image_files import DEEP


def read(image: Any, given: str) -> Any:
    """An 8-bit map unchanged; a map of more bits scaled from its smallest value (black) to its largest (white).

    Args:
        image: an image of Pillow.
        given: name of the image, for messages.

    Shapes: an image of Pillow to ``(height, width, 3)`` uint8.

    Raises:
        DataError: a map of more bits with NaN or infinity, or with a single value.
    """
    import numpy as np

    if image.mode not in DEEP:
        return read_colours(image, given)
    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all() or values.min() == values.max():
        raise DataError(given, got="values that are not depths (all equal, or NaN)")
    scaled = (values - values.min()) / (values.max() - values.min())
    return np.repeat(np.round(scaled * 255).astype(np.uint8)[..., None], 3, axis=2)


KIND = Condition("depth", "depth maps, near is white; 16-bit and float maps are stretched", read=read)
