"""What a family of image models says of itself; one file per family implements it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from orthotune.image.data.batch import Conditions


@dataclass(frozen=True)
class LossOptions:
    """How the loss of a denoiser is weighted and what noise it sees.

    Args:
        min_snr_gamma: weight of Min-SNR (Hang et al. 2023, arXiv 2303.09556), 5 as published; None weighs all equally.
            For families that learn a noise schedule of steps; flow matching has its own weighting and refuses it.
        noise_offset: standard deviation of a constant added to each channel's noise; 0.1 lets a model learn dark and
            bright images. Not for flow matching.
    """

    min_snr_gamma: float | None = None
    noise_offset: float = 0.0


class Family(ABC):
    """A pipeline of one family of image models: how it reads images and words, its loss, how it draws.

    Args:
        pipeline: the diffusers pipeline; its denoiser may be replaced by one with an adapter.

    Attributes:
        name: as the user knows it, such as "stable-diffusion".
        denoiser_name: the pipeline's attribute that is trained, "unet" or "transformer".
        text_encoder_names: attributes of the text encoders, in the order of the pipeline.
        attention: names of the attention's linear layers in the denoiser, for ``target_modules``.
        convolutions: names of the denoiser's convolutions inside its residual blocks; empty where it has none.
        entry: path of the layer in the denoiser that first sees the latents: what a control encoder adds to.
        pixels_per_latent: pixels along one side of a latent "pixel".
        divisor: height and width of an image must be multiples of it, in pixels.
    """

    name: ClassVar[str]
    denoiser_name: ClassVar[str]
    text_encoder_names: ClassVar[tuple[str, ...]]
    attention: ClassVar[tuple[str, ...]]
    convolutions: ClassVar[tuple[str, ...]] = ()
    entry: ClassVar[str]

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    @property
    def denoiser(self) -> nn.Module:
        """The module that is trained, with its adapter if it has one."""
        module: nn.Module = getattr(self.pipeline, self.denoiser_name)
        return module

    @denoiser.setter
    def denoiser(self, module: nn.Module) -> None:
        setattr(self.pipeline, self.denoiser_name, module)

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        """The text encoders by attribute name."""
        found = {name: getattr(self.pipeline, name, None) for name in self.text_encoder_names}
        return {name: module for name, module in found.items() if module is not None}

    @property
    @abstractmethod
    def pixels_per_latent(self) -> int:
        """Pixels along one side of a latent "pixel"."""

    @property
    @abstractmethod
    def divisor(self) -> int:
        """Height and width of an image are multiples of it, in pixels."""

    @property
    @abstractmethod
    def native_size(self) -> int:
        """Side in pixels of the images that the model was made for."""

    @abstractmethod
    def encode_pictures(self, pictures: Tensor, draw: torch.Generator) -> Tensor:
        """uint8 ``[n, 3, H, W]`` to float32 ``[n, c, h, w]``, scaled as the denoiser reads them; no gradient."""

    @abstractmethod
    def encode_captions(self, captions: Sequence[str]) -> Conditions:
        """What the denoiser is told of ``captions``; with gradient to text encoders that require it."""

    def picture_conditions(self, original: Tensor, corner: Tensor, size: tuple[int, int]) -> Conditions:
        """What the denoiser is told of the images' sizes, for families that read it (SDXL); otherwise nothing.

        Args:
            original: [n, 2], height and width in pixels before an image was scaled.
            corner: [n, 2], top and left of the crop in the scaled image.
            size: height and width of what the model sees.
        """
        return {}

    @abstractmethod
    def losses(
        self, denoiser: nn.Module, latents: Tensor, conditions: Conditions, draw: torch.Generator, options: LossOptions,
        kept: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The loss of each image, float32 ``[n]``.

        Args:
            denoiser: the module to call: ``self.denoiser`` or what an engine wrapped around it.
            latents: as ``encode_pictures`` gives them.
            conditions: as ``encode_captions`` gives them.
            draw: the noise and the times come from it alone (a CPU generator on every device).
            options: weighting and noise.
            kept: bool ``[n]``, the images whose target is what the base predicts; None where none is.
        """

    @abstractmethod
    def generate(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        steps: int = 20,
        guidance: float | None = None,
        height: int | None = None,
        width: int | None = None,
        batch_size: int = 16,
    ) -> Tensor:
        """Images uint8 ``[n, 3, H, W]``, one per prompt, the same for the same seeds whatever the batch; no gradient.

        ``guidance`` None is the family's usual value. Training mode of the modules is left as it was.
        """
