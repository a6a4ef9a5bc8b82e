"""Drift of an image model: the change of the images that it generates from the same prompts and noise."""

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
    """Change of the images generated from prompts that are not about the task.

    Args:
        pixels: mean absolute difference of the two images of a prompt and seed, from 0 to 1.
        features: mean cosine distance of the features of the two images; None without a vision model.
        features_largest: cosine distance for the image that changed most.
        unrelated: mean cosine distance between different images of the base, for comparison: ``features`` has this
            value when nothing is preserved. None without a vision model, or for one image.
        pictures: number of images that were compared.
    """

    pixels: float
    features: float | None
    features_largest: float | None
    unrelated: float | None
    pictures: int


@torch.no_grad()
def image_drift(before: Tensor, after: Tensor, features: Features | None = None) -> ImageDrift:
    """Compare the images of the base and of the adapted model, generated from the same prompts and noise.

    Args:
        before: images of the base, uint8 ``(n, 3, height, width)``.
        after: images of the adapted model, in the same order and shape.
        features: a vision model, see :data:`Features`; None compares pixels only.

    Raises:
        DataError: no images, or the two numbers or sizes differ.

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
    was, now = (normalize(features(images).flatten(1).double(), dim=1) for images in (before, after))
    # For unit vectors the squared distance is twice the cosine distance, and it is exactly 0 for equal vectors.
    distances = (was - now).square().sum(1) / 2
    apart = None
    if (count := len(was)) > 1:
        apart = (torch.cdist(was, was).square() / 2).sum().item() / (count * (count - 1))
    return ImageDrift(pixels, distances.mean().item(), distances.max().item(), apart, count)
