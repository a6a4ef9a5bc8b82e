"""Aspect-ratio buckets: sizes of about the same area, and how an image is resized and cropped to one of them.

All images of a batch have the same size. Instead of cropping all images to a square, each gets the size with the
nearest aspect ratio (as NovelAI did for Stable Diffusion, 2022).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from orthotune.errors import ConfigError

#: Height and width in pixels.
Size = tuple[int, int]
Crop = Literal["centre", "random"]
#: Difference between the sides of buckets in pixels, as published; for small models an eighth of the side.
STEP = 64


def sizes(resolution: int, divisor: int, *, widest: float = 2.0, step: int | None = None) -> list[Size]:
    """Heights and widths with at most ``resolution`` x ``resolution`` pixels, from portrait to landscape.

    For each width, the greatest height within the area, and the same size with height and width exchanged.

    Args:
        resolution: side of the square with the area, in pixels; a multiple of ``divisor``.
        divisor: all sides are multiples of it, in pixels.
        widest: largest ratio of the longer to the shorter side.
        step: difference between sides, in pixels; a multiple of ``divisor``.

    Raises:
        ConfigError: ``resolution`` or ``step`` is not a multiple of ``divisor``.

    Example:
        >>> sizes(64, 16)
        [(80, 48), (64, 64), (48, 80)]
    """
    need_multiple("resolution", resolution, divisor)
    if step is None:
        step = divisor * math.ceil(min(STEP, resolution / 8) / divisor)
    need_multiple("bucket step", step, divisor)
    if widest < 1:
        raise ConfigError(f"widest={widest:g}", needed="a ratio of 1 or more")
    result = {(resolution, resolution)}
    # Counted from the side of the square, so that the square is one of the sizes for any step.
    for width in range(resolution % step or step, resolution, step):
        height = resolution * resolution // width // step * step
        if height <= widest * width and height > 0:
            result |= {(height, width), (width, height)}
    return sorted(result, key=lambda size: size[1] / size[0])


def need_multiple(name: str, value: int, divisor: int) -> None:
    """Check that a number of pixels is possible for the model.

    Args:
        name: of the setting, for the message.
        value: in pixels.
        divisor: in pixels.

    Raises:
        ConfigError: ``value`` is not a positive multiple of ``divisor``.

    Example:
        >>> need_multiple("resolution", 500, 8)
        Traceback (most recent call last):
            ...
        orthotune.errors.ConfigError: resolution=500. Needed: a multiple of 8 pixels. Pass 496 or 504.
    """
    if value < divisor or value % divisor:
        below = value // divisor * divisor
        do = f"Pass {below} or {below + divisor}" if below > 0 else f"Pass {divisor}"
        raise ConfigError(f"{name}={value}", needed=f"a multiple of {divisor} pixels", do=do)


def nearest_size(height: int, width: int, known: Sequence[Size]) -> Size:
    """The size whose aspect ratio is nearest to that of an image, on a logarithmic scale.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        known: the sizes to choose from.

    Example:
        >>> nearest_size(600, 700, [(80, 48), (64, 64), (48, 80)])
        (64, 64)
    """
    return min(known, key=lambda size: abs(math.log(size[1] / size[0] * height / width)))


@dataclass(frozen=True)
class Fit:
    """How an image gets the size of a bucket: resized to ``resized``, then cropped at ``top``, ``left`` to ``size``.

    ``scale`` is the factor of the resizing, above 1 if the image is enlarged.
    """

    size: Size
    resized: Size
    top: int
    left: int
    scale: float


def fit(height: int, width: int, size: Size, crop: Crop = "centre", rng: random.Random | None = None) -> Fit:
    """Resize an image so that it just covers ``size``, then crop the rest.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        size: wanted height and width, in pixels.
        crop: at the centre, or at a random position.
        rng: generator of the random position.

    Raises:
        ConfigError: ``crop`` is neither ``centre`` nor ``random``.

    Example:
        >>> fit(300, 100, (48, 32))
        Fit(size=(48, 32), resized=(96, 32), top=24, left=0, scale=0.32)
    """
    scale = max(size[0] / height, size[1] / width)
    resized = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    over = (resized[0] - size[0], resized[1] - size[1])
    if crop == "random":
        rng = rng or random.Random()
        top, left = rng.randint(0, over[0]), rng.randint(0, over[1])
    elif crop == "centre":
        top, left = over[0] // 2, over[1] // 2
    else:
        raise ConfigError(f"crop={crop!r}", needed="centre or random")
    return Fit(size, resized, top, left, scale)


def fitted(pixels: Any, how: Fit, sharp: bool = False) -> Any:
    """The resized and cropped image, ``(height, width, 3)`` uint8.

    Args:
        pixels: the image, ``(height, width, 3)`` uint8.
        how: from :func:`fit`.
        sharp: do not mix colours (nearest neighbour); otherwise Lanczos, as used in the training of the models.
    """
    import numpy as np
    from PIL import Image

    if pixels.shape[:2] != how.resized:
        filter_ = Image.Resampling.NEAREST if sharp else Image.Resampling.LANCZOS
        pixels = np.array(Image.fromarray(pixels).resize(how.resized[::-1], filter_))
    return pixels[how.top : how.top + how.size[0], how.left : how.left + how.size[1]]
