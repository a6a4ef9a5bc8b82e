"""Maps of classes from files: coloured maps are unchanged, maps of class numbers get one colour per class."""

from __future__ import annotations

from typing import Any

from orthotune.image.control.conditions.kind import Condition, read_colours
from orthotune.metrics.segmentation import colours


def read(image: Any, given: str) -> Any:
    """A coloured map; an image with one channel or a palette holds class numbers, which are replaced by colours.

    A class has the same colour in all maps.

    Args:
        image: an image of Pillow.
        given: name of the image, for messages.

    Shapes: an image of Pillow to ``(height, width, 3)`` uint8.
    """
    import numpy as np
    import torch

    if image.mode in ("L", "P", "I", "I;16", "I;16B", "1"):
        return colours(torch.from_numpy(np.array(image).astype(np.int64)))
    return read_colours(image, given)


KIND = Condition("segm", "maps of classes, in colours or as class numbers in one channel", read=read, sharp=True)
