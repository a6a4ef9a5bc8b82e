"""Canny edges, white on black, with the thresholds of ControlNet."""

from __future__ import annotations

from typing import Any

from orthotune.image.control.conditions.kind import Condition, read_colours
from orthotune.metrics.edges import canny, edge_map


def make(pixels: Any) -> Any:
    """The Canny edges of an image, thresholds 100 and 200.

    Shapes: ``(height, width, 3)`` uint8, in and out.
    """
    import numpy as np

    return np.repeat(canny(pixels)[..., None] * np.uint8(255), 3, axis=2)


def read(image: Any, given: str) -> Any:
    """The edges in a file, unchanged.

    Args:
        image: an image of Pillow.
        given: name of the image, for messages.

    Raises:
        DataError: the image is mostly grey, so that it is not an edge map.
    """
    pixels = read_colours(image, given)
    edge_map(pixels, given)
    return pixels


KIND = Condition("canny", "Canny edges, white on black (thresholds 100 and 200)", make, read)
