"""Scores of a controlled model on held-out digits of the image world: how well it follows control images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from orthotune.image.control.conditions.registry import condition
from orthotune.image.control.hint_encoder import HintEncoder
from orthotune.image.control.hinted import generate_hinted
from orthotune.image.families.family import Family
from orthotune.worlds.image_control_scores import ControlScores
from orthotune.worlds.image_samples import GUIDANCE, STEPS
from orthotune.worlds.image_scores import COUNT, Split

#: Masks come with the scenes of the image world; all other kinds are computed from the images.
_MASKS = "segm"


@dataclass(frozen=True)
class SampleScores:
    """Scores of generated scenes of a split; the training loop calls the object with a step and a family.

    Args:
        signal: kind of the control images, one that the image world has.
        encoder: returns the encoder of control images; None generates without control images, for comparison.
        split: see :class:`~orthotune.worlds.image_control_scores.ControlScores`.
        count: see :class:`~orthotune.worlds.image_control_scores.ControlScores`.
        steps: of the sampler.
        guidance: scale of the classifier-free guidance.

    Example:
        >>> SampleScores("segm", count=2).hints.shape
        torch.Size([2, 3, 32, 32])
    """

    signal: str
    encoder: Callable[[], HintEncoder] | None = None
    split: Split = "validation"
    count: int = COUNT
    steps: int = STEPS
    guidance: float = GUIDANCE

    def __call__(self, step: int, family: Family) -> dict[str, float]:
        """The scores of ``family``, see ``ControlScores.of``."""
        return self.scenes.of(self.generate(family))

    def generate(self, family: Family) -> Tensor:
        """Generate the images that are scored: uint8 ``[n, 3, 32, 32]``."""
        prompts, seeds = [prompt.text for prompt in self.scenes.wanted], self.scenes.seeds
        options: dict[str, Any] = {"steps": self.steps, "guidance": self.guidance}
        if self.encoder is None:
            return family.generate(prompts, seeds, **options).cpu()
        return generate_hinted(family, self.encoder(), prompts, self.hints, seeds, **options).cpu()

    @cached_property
    def scenes(self) -> ControlScores:
        """The scenes that the model must generate."""
        return ControlScores(self.split, self.count)

    @cached_property
    def hints(self) -> Tensor:
        """The control images: float32 ``[n, 3, 32, 32]`` of 0..1."""
        if self.signal == _MASKS:
            return self.scenes.masks.float()[:, None].expand(-1, 3, -1, -1)
        kind = condition(self.signal)
        made = [kind.made(image.permute(1, 2, 0).numpy()) for image in self.scenes.images]
        return torch.stack([torch.from_numpy(one).permute(2, 0, 1).float() / 255 for one in made])
