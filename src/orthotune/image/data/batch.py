"""The input of one training step of an image model."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

#: Inputs of a denoiser besides the noisy latents: keyword arguments, with the first dimension ``n``.
Conditions = dict[str, Tensor]


@dataclass(frozen=True)
class Sources:
    """The images that an editing model reads besides the captions, in the size of the images that it generates.

    Args:
        images: uint8 [n, k, 3, H, W]: ``k`` references for each image, or the one image that is painted into.
        mask: bool [n, H, W], true where a model of inpainting paints; None for models that read references.
    """

    images: Tensor
    mask: Tensor | None = None

    def rows(self, which: slice) -> Sources:
        """The sources of a part of the images.

        Args:
            which: the images.
        """
        return Sources(self.images[which], None if self.mask is None else self.mask[which])


@dataclass(frozen=True)
class Batch:
    """``n`` images of one size, encoded.

    Args:
        latents: float32 [n, channels, height, width], of films [n, channels, frames, height, width], scaled for the
            denoiser.
        captions: of the images.
        conditions: the encoded captions; None if a text encoder is trained, which encodes them at each step.
        weight: float32 [n], weight of each image in the loss.
        hints: the control images, float32 [n, 3, H, W] of 0..1; None without control.
        mask: float32 [n, 1, H, W] of 0..1, how much each pixel counts in the loss; None counts all alike.
        kept: bool [n], the images whose target is the prediction of the base; None if there are none.
    """

    latents: Tensor
    captions: list[str]
    conditions: Conditions | None
    weight: Tensor
    hints: Tensor | None = None
    kept: Tensor | None = None
    mask: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""
        moved: dict[str, Any] = {
            field.name: {name: tensor.to(device) for name, tensor in value.items()}
            if isinstance(value, dict)
            else value.to(device)
            if isinstance(value, Tensor)
            else value
            for field in fields(self)
            for value in [getattr(self, field.name)]
        }
        return Batch(**moved)
