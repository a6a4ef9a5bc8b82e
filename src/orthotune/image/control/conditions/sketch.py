"""Soft edges like a pencil sketch: grey lines that are lighter where an edge is stronger and wider.

A classical filter instead of a network such as HED. The image is smoothed by Gaussians of three widths; the gradient of
the strongest colour channel is normalized at each scale, and the result is the geometric mean over the scales. An edge
must exist at all scales; texture that vanishes when smoothed has no edges.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from orthotune.image.control.conditions.kind import Condition

#: Standard deviations of the Gaussians, as shares of the shorter side; at 512 pixels 1, 2 and 4.
WIDTHS = (1 / 512, 1 / 256, 1 / 128)
#: Smallest width of a Gaussian, in pixels; a narrower sampled Gaussian does not smooth.
NARROWEST = 0.6
#: Gradient times width at which an edge is white; a step of 160 grey levels reaches it at each width.
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

    image = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).float()
    side = min(image.shape[1:])
    product = torch.ones(image.shape[1:])
    for share in WIDTHS:
        width = max(NARROWEST, share * side)
        # The gradient of a smoothed step is proportional to 1 / width: the factor gives all scales equal weight.
        product *= (_gradient(_smooth(image, width)) * max(1.0, width) / FULL).clamp(max=1)
    lines = (product ** (1 / len(WIDTHS)) * 255).round().to(torch.uint8)
    return np.repeat(lines.numpy()[..., None], 3, axis=2)


def _smooth(image: Tensor, width: float) -> Tensor:
    reach = max(1, round(3 * width))
    places = torch.arange(-reach, reach + 1)
    bell = torch.exp(-0.5 * (places / width) ** 2)
    bell /= bell.sum()
    for shape, border in (
        (bell[None, None, :, None], (0, 0, reach, reach)),
        (bell[None, None, None], (reach, reach, 0, 0)),
    ):
        image = conv2d(pad(image[:, None], border, mode="replicate"), shape)[:, 0]
    return image


def _gradient(image: Tensor) -> Tensor:
    """Largest gradient over the channels, by central differences: ``[channels, H, W]`` to ``[H, W]``."""
    wide = pad(image[None], (1, 1, 1, 1), mode="replicate")[0]
    across = (wide[:, 1:-1, 2:] - wide[:, 1:-1, :-2]) / 2
    down = (wide[:, 2:, 1:-1] - wide[:, :-2, 1:-1]) / 2
    return (across.square() + down.square()).sqrt().amax(0)


KIND = Condition("sketch", "soft edges as HED gives them, white on black", make)
