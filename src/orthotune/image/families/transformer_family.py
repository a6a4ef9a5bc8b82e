"""The base class of families whose denoiser is a transformer of diffusers that predicts the velocity of a flow."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from orthotune.image.data.batch import Conditions
from orthotune.image.families.flow_matching import FlowFamily, FlowTimes


class TransformerFamily(FlowFamily):
    """A flow with a transformer, one text encoder and images of any size; a family states the rest as data.

    Attributes:
        logit_normal: the distribution of times in training, see :class:`FlowTimes`.
        patch: side of the patches of the transformer, in latent "pixels".
        native: side in pixels of the images that the model was trained on.
        tokens: most tokens of a caption.
        multiple: the pipeline requires sides that are multiples of it in pixels, whatever the VAE.
    """

    denoiser_name = "transformer"
    entry = ""  # control images have been tried on none of these families
    text_encoder_names: ClassVar[tuple[str, ...]] = ("text_encoder",)
    logit_normal: ClassVar[bool] = False
    patch: ClassVar[int] = 2
    native: ClassVar[int] = 1024
    tokens: ClassVar[int] = 512
    multiple: ClassVar[int] = 1

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self.times = FlowTimes.of(pipeline.scheduler, self.logit_normal)

    @property
    def divisor(self) -> int:
        return math.lcm(self.multiple, self.pixels_per_latent * self.patch)

    @property
    def native_size(self) -> int:
        return self.native

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the frozen weights of attention; some families keep others, as of times, in float32."""
        if self._computes_in is not None:
            return self._computes_in
        ends = (f".{self.attention[0]}.weight", f".{self.attention[0]}.base_layer.weight")
        return next(p.dtype for name, p in self.denoiser.named_parameters() if name.endswith(ends))

    def inputs(self, conditions: Conditions, noisy: Tensor) -> dict[str, Tensor]:
        """The conditions on the device of the latents; floating-point ones in the dtype of the denoiser.

        Args:
            conditions: from ``encode_captions``.
            noisy: the latents.
        """
        return {name: tensor.to(noisy.device, self.dtype if tensor.is_floating_point() else tensor.dtype)
                for name, tensor in conditions.items()}  # fmt: skip


def padded(rows: list[Tensor], length: int) -> tuple[Tensor, Tensor]:
    """Encodings of captions of different lengths as one tensor, and which of its tokens belong to a caption.

    Args:
        rows: one per caption, ``[tokens, d]``.
        length: tokens of the result; encodings of all captions then share a batch.

    Returns:
        ``[n, length, d]``, zero after the last token, and bool ``[n, length]``.

    Example:
        >>> padded([torch.ones(1, 2), torch.ones(3, 2)], 4)[1].sum(1)
        tensor([1, 3])
    """
    found = torch.zeros(len(rows), length, rows[0].shape[-1], dtype=rows[0].dtype, device=rows[0].device)
    mask = torch.zeros(len(rows), length, dtype=torch.bool, device=rows[0].device)
    for index, row in enumerate(rows):
        found[index, : len(row)] = row[:length]
        mask[index, : len(row)] = True
    return found, mask


def trimmed(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """A padded batch without the columns that belong to no caption.

    Args:
        tokens: ``[n, length, d]``.
        mask: bool ``[n, length]``.

    Example:
        >>> trimmed(*padded([torch.ones(1, 2), torch.ones(3, 2)], 9))[0].shape
        torch.Size([2, 3, 2])
    """
    longest = int(mask.sum(dim=1).max())
    return tokens[:, :longest], mask[:, :longest]
