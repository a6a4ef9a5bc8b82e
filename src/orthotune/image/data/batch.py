"""What one training step of an image model reads."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

#: What a denoiser is told beside the noisy latents: names of its keyword arguments, first dimension ``n``.
Conditions = dict[str, Tensor]


@dataclass(frozen=True)
class Batch:
    """``n`` images of one size, as the denoiser reads them.

    Args:
        latents: float32 [n, channels, height, width], scaled as the denoiser reads them.
        captions: what is said of each image.
        conditions: the captions, encoded; None when a text encoder is trained and they are encoded anew at each step.
        weight: float32 [n], how much each image counts in the loss.
        hints: float32 [n, 3, H, W] of 0..1, the control images, in pixels; None without control.
        kept: bool [n], the images whose target is what the base predicts of them; None where none is.
    """

    latents: Tensor
    captions: list[str]
    conditions: Conditions | None
    weight: Tensor
    hints: Tensor | None = None
    kept: Tensor | None = None

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
