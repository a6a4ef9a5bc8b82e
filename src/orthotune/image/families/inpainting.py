"""Stable Diffusion and SDXL for inpainting: the UNet also reads a mask and the image around it (9 channels)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from orthotune.image.data.batch import Conditions, Sources
from orthotune.image.families.flux_editing import outside
from orthotune.image.families.sdxl import StableDiffusionXL
from orthotune.image.families.stable_diffusion import StableDiffusion


class StableDiffusionInpainting(StableDiffusion):
    """Stable Diffusion 1.5 and 2 for inpainting (Rombach et al. 2022, arXiv 2112.10752, section 4.5)."""

    name = "stable-diffusion-inpainting"
    pipeline_class = "StableDiffusionInpaintPipeline"
    entry = ""
    reads: ClassVar[Literal["mask"]] = "mask"

    @property
    def _channels(self) -> int:
        return 2 * super()._channels + 1

    def encode_sources(self, sources: Sources) -> Conditions:
        self.check_sources(sources)
        latents, mask = outside(self, sources)
        return {"outside": latents, "mask": interpolate(mask, latents.shape[-2:])}

    def _seen(self, noisy: Tensor, conditions: Conditions) -> Tensor:
        beside = [conditions[name].to(noisy.device, noisy.dtype) for name in ("mask", "outside")]
        return torch.cat([noisy, *beside], dim=1)

    def _sample(self, prompts: list[str], generators: list[torch.Generator], **options: Any) -> Tensor:
        sources: Sources = options.pop("sources")
        latents, mask = outside(self, sources)
        return super()._sample(
            prompts, generators, image=sources.images[:, 0] / 255, mask_image=mask,
            masked_image_latents=latents.to(self.device, self.dtype), strength=1.0, **options,
        )  # fmt: skip


class StableDiffusionXLInpainting(StableDiffusionInpainting, StableDiffusionXL):
    """SDXL for inpainting, by the same channels."""

    name = "sdxl-inpainting"
    pipeline_class = "StableDiffusionXLInpaintPipeline"
    text_encoder_names: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    usual_guidance = 7.5
    addition = "text_time"
