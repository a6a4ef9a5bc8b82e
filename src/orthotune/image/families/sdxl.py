"""Stable Diffusion XL: a larger UNet, two CLIP text encoders, and image sizes as inputs (Podell et al. 2023)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from orthotune.image.data.batch import Conditions
from orthotune.image.families.stable_diffusion import StableDiffusion


class StableDiffusionXL(StableDiffusion):
    """The base model of SDXL: the UNet also reads the pooled embedding of the second encoder and six numbers.

    These are the original height and width of the image, top and left of the crop, and the height and width of the crop
    (arXiv 2307.01952, sections 2.2 and 2.3), see :func:`time_ids`. If the conditions do not contain them, the image
    counts as uncropped and in its original size, as in generation.
    """

    name = "sdxl"
    pipeline_class = "StableDiffusionXLPipeline"
    text_encoder_names: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    usual_guidance = 5.0
    addition = "text_time"

    def _encode(self, captions: list[str]) -> Conditions:
        tokens, _, pooled, _ = self.pipeline.encode_prompt(
            captions, device=self.device, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": tokens, "text_embeds": pooled}

    def size_conditions(self, original: Tensor, corner: Tensor, size: tuple[int, int]) -> Conditions:
        return {"time_ids": time_ids(original, corner, size)}

    def _unet_inputs(self, conditions: Conditions, latents: Tensor) -> dict[str, Any]:
        count, (height, width) = len(latents), (side * self.pixels_per_latent for side in latents.shape[-2:])
        sizes = conditions.get("time_ids")
        if sizes is None:
            sizes = time_ids(torch.tensor([[height, width]]).expand(count, 2), torch.zeros(count, 2), (height, width))
        added = {"text_embeds": conditions["text_embeds"], "time_ids": sizes}
        added = {name: tensor.to(latents.device, self.dtype) for name, tensor in added.items()}
        return super()._unet_inputs(conditions, latents) | {"added_cond_kwargs": added}

    def idle_modules(self, component: str) -> tuple[str, ...]:
        if component != "text_encoder":
            return ()
        # The UNet reads the output of the layer before the last, and not the pooled embedding of the first encoder.
        last = f"encoder.layers.{self.pipeline.text_encoder.config.num_hidden_layers - 1}."
        return (last, f"text_model.{last}")


def time_ids(original: Tensor, corner: Tensor, size: tuple[int, int]) -> Tensor:
    """The six numbers that SDXL reads, float32 [n, 6].

    Args:
        original: [n, 2], height and width of each image before it was resized, in pixels.
        corner: [n, 2], top and left of the crop in the resized image, in pixels.
        size: height and width of the crop, in pixels.

    Example:
        >>> time_ids(torch.tensor([[600, 800]]), torch.tensor([[0, 16]]), (64, 64)).tolist()
        [[600.0, 800.0, 0.0, 16.0, 64.0, 64.0]]
    """
    return torch.cat([original.float(), corner.float(), torch.tensor([size]).float().expand(len(original), 2)], dim=1)
