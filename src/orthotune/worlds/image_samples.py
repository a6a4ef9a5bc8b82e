"""Generate images with a pipeline of the image world."""

from __future__ import annotations

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from orthotune.worlds.image_captions import Prompt

STEPS, GUIDANCE = 20, 3.0


@torch.no_grad()
def sample_images(
    pipeline: StableDiffusionPipeline, wanted: list[Prompt], seed: int, steps: int = STEPS, guidance: float = GUIDANCE
) -> Tensor:
    """Generate one image per prompt, each with its own noise.

    Args:
        pipeline: the pipeline.
        wanted: the prompts.
        seed: of the noise.
        steps: of the sampler.
        guidance: scale of the classifier-free guidance.

    Returns:
        uint8 [n, 3, 32, 32].
    """
    batches = []
    for first in range(0, len(wanted), 30):
        part = wanted[first : first + 30]
        noise = [torch.Generator().manual_seed(seed * 1_000_003 + first + number) for number in range(len(part))]
        images = pipeline(
            [prompt.text for prompt in part],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=noise,
            output_type="pt",
        ).images
        batches.append((images.float() * 255).round().to(torch.uint8).cpu())
    return torch.cat(batches)
