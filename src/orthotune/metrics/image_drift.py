"""Drift of an image model: images of the same prompts and noise, before and after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from orthotune.errors import DataError

#: Images uint8 ``(n, 3, height, width)`` to one vector each, ``(n, features)``.
Features = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ImageDrift:
    """What changed in the images of prompts that are not about the task.

    Args:
        pixels: mean absolute difference of the two images of a prompt and seed, from 0 to 1.
        features: mean cosine distance of their features; None without a vision model.
        features_largest: that of the image that changed most.
        unrelated: mean cosine distance between different images of the base: what ``features`` is when nothing is
            kept. None without a vision model, or for one image.
        images: how many were compared.
    """

    pixels: float
    features: float | None
    features_largest: float | None
    unrelated: float | None
    pictures: int


@torch.no_grad()
def image_drift(before: Tensor, after: Tensor, features: Features | None = None) -> ImageDrift:
    """Compare what base and adapted model drew of the same prompts from the same noise.

    Args:
        before: of the base, uint8 ``(n, 3, height, width)``.
        after: of the adapted model, in the same order.
        features: of a vision model, see :data:`Features`; only pixels are compared without it.

    Raises:
        DataError: no images, or not as many and as large ones.

    Example:
        >>> white = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
        >>> image_drift(white, white // 2).pixels  # 127 of 255
        0.5019607843137255
    """
    if before.shape != after.shape or before.ndim != 4 or not len(before):
        raise DataError(
            "images to compare", got=f"{tuple(before.shape)} and {tuple(after.shape)}", needed="(n, 3, H, W) of both"
        )
    pixels = (before.double() - after.double()).abs().mean().item() / 255
    if features is None:
        return ImageDrift(pixels, None, None, None, len(before))
    was, now = (normalize(features(pictures).flatten(1).double(), dim=1) for pictures in (before, after))
    # Vectors of the length 1: the square of their distance is twice the cosine's, and exactly 0 for equal ones.
    distances = (was - now).square().sum(1) / 2
    apart = None
    if (count := len(was)) > 1:
        apart = (torch.cdist(was, was).square() / 2).sum().item() / (count * (count - 1))
    return ImageDrift(pixels, distances.mean().item(), distances.max().item(), apart, count)
