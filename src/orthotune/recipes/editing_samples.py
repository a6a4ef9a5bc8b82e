"""Samples of a run on an editing model: what the model reads, with the generated image to the right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from orthotune.image.data.batch import Sources
from orthotune.image.editing.dataset import EditingDataset
from orthotune.image.editing.examples import EditExample
from orthotune.image.families.family import Family
from orthotune.image.loop.samples import Sampler
from orthotune.recipes.image_settings import ImageSettings


def editing_sampler(family: Family, settings: ImageSettings, examples: Sequence[EditExample], masks: bool) -> Sampler:
    """A sampler that gives each prompt the references, or the image and mask, of an example, repeated in a cycle.

    Args:
        family: with its adapter.
        settings: of the run.
        examples: give what the model reads.
        masks: make masks at random.

    Returns:
        A function of prompts and seeds that returns uint8 ``[n, 3, H, (k + 1) W]``, what the model reads on the left.
    """
    data = EditingDataset(
        examples, family, settings.resolution, encode_captions=False, random_masks=masks, seed=settings.seed,
        say=lambda _: None,
    )  # fmt: skip
    known = [data.sources(number) for number in range(len(examples))]

    def sample(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        # Each prompt is repeated for each seed.
        each = len(settings.sample_seeds)
        chosen = [known[number // each % len(known)] for number in range(len(prompts))]
        masks = [one.mask for one in chosen if one.mask is not None]
        sources = Sources(torch.cat([one.images for one in chosen]), torch.cat(masks) if masks else None)
        options: dict[str, Any] = {"steps": settings.sample_steps, "guidance": settings.guidance}
        generated = family.generate(prompts, seeds, batch_size=settings.batch_size, sources=sources, **options).cpu()
        return torch.cat([*_read(sources).unbind(1), generated], dim=3)

    return sample


def _read(sources: Sources) -> Tensor:
    """What the model reads, as images: the part that is painted is grey."""
    if sources.mask is None:
        return sources.images
    return sources.images.masked_fill(sources.mask[:, None, None], 128)
