"""Soft edges as a pencil draws them: grey lines whose darkness says how strong and how wide an edge is.

A classical measure in the place of a network such as HED: the gradient of the picture smoothed by Gaussians of three
widths, the strongest of the colour channels, each scale on its own footing, and of the scales the geometric mean. So
an edge counts when it is there at every scale, texture that vanishes when smoothed does not, and lines are soft. It
is not HED: no network has learned which edges people would draw.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from orthotune.image.control.conditions.kind import Condition

#: Standard deviations of the Gaussians, as shares of the shorter side; at 512 pixels 1, 2 and 4.
WIDTHS = (1 / 512, 1 / 256, 1 / 128)
#: No Gaussian is narrower, in pixels: below it the sampled one is no smoothing any more.
NARROWEST = 0.6
#: The gradient times the width that is drawn in full white; a step of 160 grey levels has it, at every width.
FULL = 64.0


def make(pixels: Any) -> Any:
    """The soft edges of an image, white on black.

    Shapes: ``(height, width, 3)`` uint8, in and out.

    Example:
        >>> import numpy as np
        >>> half = np.zeros((8, 8, 3), dtype=np.uint8)
        >>> half[:, 4:] = 255
        >>> make(half)[4, :, 0].tolist()
        [0, 1, 85, 255, 255, 85, 1, 0]
    """
    import numpy as np

    picture = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).float()
    side = min(picture.shape[1:])
    product = torch.ones(picture.shape[1:])
    for share in WIDTHS:
        width = max(NARROWEST, share * side)
        # A smoothed step has a gradient of 1 / width: times the width, wide scales count as much as narrow ones.
        product *= (_gradient(_smooth(picture, width)) * max(1.0, width) / FULL).clamp(max=1)
    lines = (product ** (1 / len(WIDTHS)) * 255).round().to(torch.uint8)
    return np.repeat(lines.numpy()[..., None], 3, axis=2)


def _smooth(picture: Tensor, width: float) -> Tensor:
    reach = max(1, round(3 * width))
    places = torch.arange(-reach, reach + 1)
    bell = torch.exp(-0.5 * (places / width) ** 2)
    bell /= bell.sum()
    for shape, border in (
        (bell[None, None, :, None], (0, 0, reach, reach)),
        (bell[None, None, None], (reach, reach, 0, 0)),
    ):
        picture = conv2d(pad(picture[:, None], border, mode="replicate"), shape)[:, 0]
    return picture


def _gradient(picture: Tensor) -> Tensor:
    """The steepest of the channels, by central differences: ``[channels, height, width]`` to ``[height, width]``."""
    wide = pad(picture[None], (1, 1, 1, 1), mode="replicate")[0]
    across = (wide[:, 1:-1, 2:] - wide[:, 1:-1, :-2]) / 2
    down = (wide[:, 2:, 1:-1] - wide[:, :-2, 1:-1]) / 2
    return (across.square() + down.square()).sqrt().amax(0)


KIND = Condition("sketch", "soft edges as HED gives them, white on black", make)
