"""Samples of a control run: each control image with the generated image to its right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from orthotune.image.control.conditions.kind import Condition
from orthotune.image.control.hint_encoder import HintEncoder
from orthotune.image.control.hinted import generate_hinted
from orthotune.image.data.cache import ImageDataset
from orthotune.image.data.captions import Example
from orthotune.image.families.family import Family
from orthotune.image.loop.samples import Sampler
from orthotune.image.loop.trainee import Trainee
from orthotune.recipes.image_settings import ImageSettings


def control_sampler(trainee: Trainee, settings: ImageSettings, examples: Sequence[Example], kind: Condition) -> Sampler:
    """A sampler that generates prompts with the control images of ``examples``, repeated in a cycle.

    Args:
        trainee: the trained networks.
        settings: of the run.
        examples: give the control images.
        kind: of the control images.

    Returns:
        A function of prompts and seeds that returns uint8 ``[n, 3, H, 2 W]``, the control image on the left.
    """
    family, encoder = trainee.family, trainee.hint_encoder
    assert isinstance(encoder, HintEncoder)
    known = _hints(family, settings, examples, kind)

    def sample(prompts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        # Each prompt is repeated for each seed.
        each = len(settings.sample_seeds)
        hints = known[[number // each % len(known) for number in range(len(prompts))]]
        options: dict[str, Any] = {"steps": settings.sample_steps, "guidance": settings.guidance}
        generated = generate_hinted(family, encoder, prompts, hints, seeds, batch_size=settings.batch_size, **options)
        return torch.cat([(hints * 255).round().to(torch.uint8), generated.cpu()], dim=3)

    return sample


def _hints(family: Family, settings: ImageSettings, examples: Sequence[Example], kind: Condition) -> Tensor:
    data = ImageDataset(
        examples, family, settings.resolution, encode_captions=False, condition=kind, seed=settings.seed,
        say=lambda _: None,
    )  # fmt: skip
    hints = data.batch(list(range(len(examples)))).hints
    assert hints is not None
    return hints
