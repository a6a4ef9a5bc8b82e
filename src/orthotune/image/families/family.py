"""The base class of families of image models; each family is implemented in one file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from orthotune.errors import RecipeError
from orthotune.image.data.batch import Conditions, Sources
from orthotune.image.families.noise_levels import OF_MODEL, NoiseLevels


@dataclass(frozen=True)
class LossOptions:
    """Weighting and noise of the loss of a denoiser.

    Args:
        min_snr_gamma: gamma of Min-SNR weighting (Hang et al. 2023, arXiv 2303.09556), 5 in the paper; None gives all
            steps the same weight. Only for families with discrete noise steps, not for flow matching.
        noise_offset: standard deviation of a constant added to each channel's noise; 0.1 lets a model learn dark and
            bright images. Not for flow matching.
        levels: at which levels of noise the denoiser is trained.
        mask: of a batch, float32 ``[n, 1, H, W]`` of 0..1, how much each pixel counts; None counts all alike.
    """

    min_snr_gamma: float | None = None
    noise_offset: float = 0.0
    mask: Tensor | None = None
    levels: NoiseLevels = OF_MODEL


class Family(ABC):
    """A pipeline of one family of image models: encodes images and captions, computes the loss, generates images.

    Args:
        pipeline: the diffusers pipeline; its denoiser may be replaced by one with an adapter.

    Attributes:
        name: of the family, such as "stable-diffusion".
        denoiser_name: attribute of the trained network in the pipeline, "unet" or "transformer".
        text_encoder_names: attributes of the text encoders, in the order of the pipeline.
        attention: names of the linear layers of attention in the denoiser, for ``target_modules``.
        convolutions: names of the convolutions in the residual blocks of the denoiser; empty if it has none.
        entry: path of the first layer of the denoiser, to whose output a control encoder adds; empty for a family that
            is not controlled.
        pixels_per_latent: pixels along one side of a latent "pixel".
        divisor: height and width of images must be multiples of it, in pixels.
        reads: what the model reads besides captions: nothing, images to edit (``references``), or an image and the part
            of it that is painted (``mask``).
        most_references: images that a model of ``references`` reads for one image.
        text_reads_references: the text encoder sees the references, so that a caption is encoded with them.
        films: the model generates clips of several frames.
        frame_rate: frames in a second of the films that such a model was trained on.
    """

    name: ClassVar[str]
    denoiser_name: str
    text_encoder_names: ClassVar[tuple[str, ...]]
    attention: ClassVar[tuple[str, ...]]
    convolutions: ClassVar[tuple[str, ...]] = ()
    entry: ClassVar[str]
    reads: ClassVar[Literal["", "references", "mask"]] = ""
    most_references: ClassVar[int] = 1
    text_reads_references: ClassVar[bool] = False
    films: ClassVar[bool] = False
    frame_rate: ClassVar[int] = 24

    #: what fetches blocks of the denoiser from main memory, a ``BlockSwap``; None where all are on the device
    swap: Any = None

    def __init__(self, pipeline: Any) -> None:
        self.pipeline = pipeline

    def train_expert(self, expert: str) -> None:
        """Choose which of several denoisers is trained, each for a part of the times.

        Args:
            expert: ``high-noise`` or ``low-noise``.

        Raises:
            RecipeError: the model has one denoiser for all times.
        """
        raise RecipeError(f"expert={expert} for {self.name}", got="a model with one denoiser", do="Leave it out")

    @property
    def expert(self) -> str | None:
        """Which of several denoisers is trained, ``high-noise`` or ``low-noise``; None for a model with one."""
        return None

    @property
    def generation(self) -> str:
        """The name of the family, and which of its generations the model is where they differ in size."""
        return self.name

    @property
    def denoiser(self) -> nn.Module:
        """The denoiser, with its adapter if it has one."""
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
        """Side in pixels of the images that the model was trained on."""

    @property
    def frames_per_latent(self) -> int:
        """Frames of a clip that the VAE joins into one, after the first, which stays alone; 1 without clips."""
        names = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio")
        known = (getattr(self.pipeline, name, None) for name in names)
        return int(next((one for one in known if one), 1)) if self.films else 1

    def check_frames(self, frames: int) -> None:
        """Check that a number of frames is possible for the model.

        Args:
            frames: of a clip; 1 for an image.

        Raises:
            RecipeError: the family has no clips, or the VAE does not take this number.
        """
        if frames != 1 and not self.films:
            raise RecipeError(
                f"frames={frames} for {self.name}", got="a model of images", needed="frames=1, or a model of films",
                do="Leave frames out",
            )  # fmt: skip
        joined = self.frames_per_latent
        if frames < 1 or (frames - 1) % joined:
            below = 1 + max(0, frames - 1) // joined * joined
            raise RecipeError(
                f"frames={frames} for {self.name}", got=f"a VAE that joins {joined} frames into one, after the first",
                needed=f"1 + a multiple of {joined}", do=f"Take {below} or {below + joined}",
            )  # fmt: skip

    @abstractmethod
    def encode_images(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Encode images with the VAE; no gradient.

        Args:
            images: uint8 ``[n, 3, H, W]``, or clips ``[n, 3, frames, H, W]`` for families of films.
            generator: on the CPU, for the noise of the VAE.

        Returns:
            Latents, float32 ``[n, c, h, w]``, for some families ``[n, c, frames, h, w]``, scaled for the denoiser.
        """

    @abstractmethod
    def encode_captions(self, captions: Sequence[str], sources: Sources | None = None) -> Conditions:
        """Encode captions as inputs of the denoiser; with gradient if a text encoder is trained.

        Args:
            captions: one per image.
            sources: the images to edit, for families with ``text_reads_references``; the others ignore them.
        """

    def encode_sources(self, sources: Sources) -> Conditions:
        """Encode the images that an editing model reads as further inputs of the denoiser; no gradient.

        Args:
            sources: of each image.

        Raises:
            RecipeError: the family reads no images, or others than these.
        """
        raise RecipeError(f"images to edit for {self.name}", got="a model that reads captions alone")

    def size_conditions(self, original: Tensor, corner: Tensor, size: tuple[int, int]) -> Conditions:
        """Inputs of the denoiser for the sizes of the images, in families that have them (SDXL); otherwise empty.

        Args:
            original: [n, 2], height and width of each image before it was resized, in pixels.
            corner: [n, 2], top and left of the crop in the resized image, in pixels.
            size: height and width of the crop, in pixels.
        """
        return {}

    def check_options(self, options: LossOptions) -> None:  # noqa: B027 - most families take all options
        """Refuse options of the loss that mean nothing for the family, before anything is encoded or generated.

        Args:
            options: weighting and noise.

        Raises:
            RecipeError: names the option.
        """

    @abstractmethod
    def losses(
        self, denoiser: nn.Module, latents: Tensor, conditions: Conditions, generator: torch.Generator,
        options: LossOptions, kept: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The loss of each image, float32 ``[n]``.

        Args:
            denoiser: the module to call: ``self.denoiser`` or a wrapper of it.
            latents: from ``encode_images``.
            conditions: from ``encode_captions``.
            generator: for noise and times, on the CPU for all devices.
            options: weighting and noise.
            kept: bool ``[n]``, the images whose target is the prediction of the base; None if there are none.
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
        sources: Sources | None = None,
        frames: int = 1,
    ) -> Tensor:
        """Generate one image per prompt; no gradient. The modules keep their training mode.

        Args:
            prompts: one per image.
            seeds: one per image; an image does not depend on the rest of the batch.
            steps: of the sampler.
            guidance: scale of the classifier-free guidance; the default of the family if None.
            height: in pixels; the native size if None.
            width: in pixels; the native size if None.
            batch_size: images per batch.
            sources: the images to edit, for families that read them; height and width are then theirs.
            frames: of each clip, for families of films; 1 for images.

        Returns:
            uint8 ``[n, 3, H, W]``; clips of several frames ``[n, 3, frames, H, W]``.
        """
