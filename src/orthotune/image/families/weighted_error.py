"""The squared error of a denoiser, as a mean over the pixels of an image that count."""

from __future__ import annotations

import torch
from torch.nn.functional import interpolate

#: Smallest total weight, so that an image without any pixel that counts has the loss 0, not 0 / 0.
SMALLEST = 1e-6


def squared_error(guess: torch.Tensor, target: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """The mean squared error of each image, float32 ``[n]``.

    Args:
        guess: of the denoiser, ``[n, c, h, w]`` or ``[n, c, frames, h, w]``.
        target: in the shape of ``guess``.
        mask: float32 ``[n, 1, H, W]`` of 0..1, how much each pixel counts, of any size; None counts all alike.

    Source: a weighted mean, so that a small mask gives the same rate of learning as a large one.

    Example:
        >>> guess = torch.tensor([[[[1.0, 3.0]]]])
        >>> squared_error(guess, torch.zeros_like(guess)), squared_error(guess, 0 * guess, torch.tensor([[[[1.0, 0]]]]))
        (tensor([5.]), tensor([1.]))
    """
    error = (guess - target).square()
    if mask is None:
        return error.flatten(1).mean(dim=1)
    weight = interpolate(mask.to(error), size=error.shape[-2:], mode="area")
    weight = weight.unsqueeze(2) if error.ndim == 5 else weight
    weight = weight.expand_as(error).flatten(1)
    return (error.flatten(1) * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=SMALLEST)
