"""Canny edges, white on black, with ControlNet's thresholds."""

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


def read(image: Any, said: str) -> Any:
    """A file of edges as it is.

    Raises:
        DataError: it is mostly grey: a photograph, not edges.
    """
    pixels = read_colours(image, said)
    edge_map(pixels, said)
    return pixels


KIND = Condition("canny", "Canny edges, white on black (thresholds 100 and 200)", make, read)
