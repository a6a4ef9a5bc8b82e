"""Aspect-ratio buckets: sizes of about one area, and how a picture comes to fit into one of them.

A batch holds pictures of one size. Instead of cropping all to a square, each goes to the size whose ratio is nearest
to its own (as NovelAI did for Stable Diffusion, 2022).
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
#: Sides of buckets differ by this many pixels, as published; images of small models by an eighth of their side.
STEP = 64


def sizes(resolution: int, divisor: int, *, widest: float = 2.0, step: int | None = None) -> list[Size]:
    """Heights and widths of about ``resolution`` x ``resolution`` pixels, never more, from upright to lying.

    For each width the greatest height that keeps within the area, and the same turned over.

    Args:
        resolution: side of the square that stands for the area, in pixels; a multiple of ``divisor``.
        divisor: every side is a multiple of it.
        widest: the longer side is at most so many times the shorter one.
        step: sides differ by it; a multiple of ``divisor``.

    Raises:
        ConfigError: a resolution or step that is no multiple of ``divisor``.

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
    found = {(resolution, resolution)}
    # Beside the square: counted from its side, so that it is in the row whatever the step.
    for width in range(resolution % step or step, resolution, step):
        height = resolution * resolution // width // step * step
        if height <= widest * width and height > 0:
            found |= {(height, width), (width, height)}
    return sorted(found, key=lambda size: size[1] / size[0])


def need_multiple(name: str, value: int, divisor: int) -> None:
    """Refuse a number of pixels that the model cannot take.

    Raises:
        ConfigError: ``value`` is no positive multiple of ``divisor``.

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
    """The size in ``known`` whose ratio is nearest to that of an image; too wide by a factor is as bad as too high.

    Example:
        >>> nearest_size(600, 700, [(80, 48), (64, 64), (48, 80)])
        (64, 64)
    """
    return min(known, key=lambda size: abs(math.log(size[1] / size[0] * height / width)))


@dataclass(frozen=True)
class Fit:
    """How an image comes into a bucket: resized to ``resized``, then cut from ``top``, ``left`` to ``size``.

    ``scale`` is how much it is enlarged; below 1 it is reduced.
    """

    size: Size
    resized: Size
    top: int
    left: int
    scale: float


def fit(height: int, width: int, size: Size, crop: Crop = "centre", chance: random.Random | None = None) -> Fit:
    """Resize an image so that it just covers ``size``, then cut what stands out.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
        size: height and width that are wanted, in pixels.
        crop: from the centre, or from a random position.
        chance: draws the random position.

    Example:
        >>> fit(300, 100, (48, 32))
        Fit(size=(48, 32), resized=(96, 32), top=24, left=0, scale=0.32)
    """
    scale = max(size[0] / height, size[1] / width)
    resized = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    over = (resized[0] - size[0], resized[1] - size[1])
    if crop == "random":
        draw = chance or random.Random()
        top, left = draw.randint(0, over[0]), draw.randint(0, over[1])
    elif crop == "centre":
        top, left = over[0] // 2, over[1] // 2
    else:
        raise ConfigError(f"crop={crop!r}", needed="centre or random")
    return Fit(size, resized, top, left, scale)


def fitted(pixels: Any, how: Fit, sharp: bool = False) -> Any:
    """The part of an image that is trained on; ``(height, width, 3)`` uint8, in and out.

    Args:
        pixels: the image.
        how: from :func:`fit`.
        sharp: colours are not mixed (each pixel is the nearest one); else Lanczos, as trained models were fed.
    """
    import numpy as np
    from PIL import Image

    if pixels.shape[:2] != how.resized:
        filter_ = Image.Resampling.NEAREST if sharp else Image.Resampling.LANCZOS
        pixels = np.array(Image.fromarray(pixels).resize(how.resized[::-1], filter_))
    return pixels[how.top : how.top + how.size[0], how.left : how.left + how.size[1]]
