"""Maps of classes: coloured maps as they are, maps of class numbers in one colour per class."""

from __future__ import annotations

from typing import Any

from orthotune.image.control.conditions.kind import Condition, read_colours
from orthotune.metrics.segmentation import colours


def read(image: Any, said: str) -> Any:
    """A coloured map; a file of one channel (or with a palette) holds class numbers and is coloured.

    A class has the same colour in every map, whichever other classes are in it.

    Shapes: an image of Pillow to ``(height, width, 3)`` uint8.
    """
    import numpy as np
    import torch

    if image.mode in ("L", "P", "I", "I;16", "I;16B", "1"):
        return colours(torch.from_numpy(np.array(image).astype(np.int64)))
    return read_colours(image, said)


KIND = Condition("segm", "maps of classes, in colours or as class numbers in one channel", read=read, sharp=True)
