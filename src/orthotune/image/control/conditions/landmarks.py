"""Maps of the 68 landmarks of a face, as lines: jaw, brows, nose, eyes, lips."""

from __future__ import annotations

from typing import Any

from orthotune.errors import DataError
from orthotune.image.control.conditions.kind import Condition
from orthotune.metrics.landmark_detectors import FACE_ALIGNMENT, detector

#: Lines through the 68 points of iBUG (first, last, closed), in different colours so that left and right differ.
LINES: tuple[tuple[int, int, bool, tuple[int, int, int]], ...] = (
    (0, 16, False, (255, 255, 255)),
    (17, 21, False, (255, 160, 0)),
    (22, 26, False, (255, 255, 0)),
    (27, 30, False, (0, 255, 0)),
    (31, 35, False, (0, 255, 160)),
    (36, 41, True, (0, 160, 255)),
    (42, 47, True, (80, 80, 255)),
    (48, 59, True, (255, 0, 0)),
    (60, 67, True, (255, 0, 255)),
)


def draw(points: Any, height: int, width: int) -> Any:
    """Lines through 68 points on black; lines are clipped at the edge of the image.

    Args:
        points: x, y in pixels.
        height: of the map, in pixels.
        width: of the map, in pixels.

    Shapes: ``(68, 2)`` as x, y in pixels -> ``(height, width, 3)`` uint8.

    Example:
        >>> import numpy as np
        >>> draw(np.full((68, 2), 3.0), 8, 8).any(axis=2).sum() > 0
        np.True_
    """
    import numpy as np
    from PIL import Image, ImageDraw

    canvas = Image.new("RGB", (width, height))
    pen = ImageDraw.Draw(canvas)
    for first, last, closed, colour in LINES:
        line = [tuple(point) for point in np.asarray(points, dtype=float)[first : last + 1]]
        pen.line(line + line[:1] * closed, fill=colour, width=max(1, min(height, width) // 128))
    return np.array(canvas)


def make(pixels: Any) -> Any:
    """The map of the face that face-alignment detects in an image.

    Raises:
        DataError: no face was detected.
        ModuleNotFoundError: face-alignment is not installed.
    """
    points = detector(FACE_ALIGNMENT)(pixels)
    if points is None:
        raise DataError("condition landmark", got="an image without a face", do="Remove it, or pass conditions=FILE")
    return draw(points, *pixels.shape[:2])


KIND = Condition("landmark", "68 points of a face as lines, or a JSON file of the points", make, points=True)
