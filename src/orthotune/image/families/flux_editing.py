"""FLUX.1 Kontext, which edits an image by an instruction, and FLUX.1 Fill, which paints into one (BFL 2024, 2025)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import pixel_unshuffle

from orthotune.image.data.batch import Conditions, Sources
from orthotune.image.families.flux import Flux, pack, positions


class FluxKontext(Flux):
    """FLUX.1 Kontext: the tokens of the image to edit follow those of the new one, as a second image."""

    name = "flux-kontext"
    pipeline_class = "FluxKontextPipeline"
    entry = ""
    reads: ClassVar[Literal["references"]] = "references"

    def encode_sources(self, sources: Sources) -> Conditions:
        self.check_sources(sources)
        return {"reference": self.encode_exactly(sources.images[:, 0] / 127.5 - 1)}

    def _seen(self, noisy: Tensor, conditions: Conditions) -> tuple[Tensor, Tensor]:
        tokens, ids = super()._seen(noisy, conditions)
        reference = conditions["reference"].to(noisy.device)
        height, width = reference.shape[-2:]
        shown = positions(height, width, noisy.device, number=1)
        return torch.cat([tokens, pack(reference)], dim=1), torch.cat([ids, shown])

    def _sample(self, prompts: list[str], generators: list[torch.Generator], **options: Any) -> Tensor:
        # The pipeline takes encoded images as they are, and otherwise brings sizes to an area of its own.
        image = self.encode_sources(options.pop("sources"))["reference"].to(self.device, self.dtype)
        area = options["height"] * options["width"]
        return super()._sample(prompts, generators, image=image, max_area=area, **options)


class FluxFill(Flux):
    """FLUX.1 Fill: each token also has the latents of the image without the part to paint, and the mask's pixels."""

    name = "flux-fill"
    pipeline_class = "FluxFillPipeline"
    entry = ""
    reads: ClassVar[Literal["mask"]] = "mask"

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self.usual_guidance = 30.0  # the default of the pipeline

    def encode_sources(self, sources: Sources) -> Conditions:
        self.check_sources(sources)
        latents, mask = outside(self, sources)
        return {"outside": latents, "mask": pixel_unshuffle(mask, self.pixels_per_latent)}

    def _seen(self, noisy: Tensor, conditions: Conditions) -> tuple[Tensor, Tensor]:
        tokens, ids = super()._seen(noisy, conditions)
        beside = [pack(conditions[name].to(noisy.device)) for name in ("outside", "mask")]
        return torch.cat([tokens, *beside], dim=2), ids

    def _sample(self, prompts: list[str], generators: list[torch.Generator], **options: Any) -> Tensor:
        sources: Sources = options.pop("sources")
        assert sources.mask is not None
        given = {"image": sources.images[:, 0] / 255, "mask_image": sources.mask.unsqueeze(1).float()}
        return super()._sample(prompts, generators, strength=1.0, **given, **options)


def outside(family: Any, sources: Sources) -> tuple[Tensor, Tensor]:
    """The latents of images whose part to paint is grey, and the mask, float32 [n, 1, H, W] of 0 and 1.

    Args:
        family: encodes the images.
        sources: images with masks.
    """
    assert sources.mask is not None
    mask = sources.mask.unsqueeze(1).float()
    return family.encode_exactly((sources.images[:, 0] / 127.5 - 1) * (1 - mask)), mask
