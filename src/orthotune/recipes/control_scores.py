"""How well a controlled model keeps to its control pictures, on the image world's held-out digits."""

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

#: A mask is the image world's own map of classes, there is nothing to find in the picture.
_MASKS = "segm"


@dataclass(frozen=True)
class DrawnScores:
    """Scores of the scenes of a split, drawn with their control pictures; called with a step and a family.

    Args:
        signal: the kind of control picture, one that the image world has.
        encoder: gives the encoder that reads them; None draws without them, for comparison.
        split, count: see :class:`~orthotune.worlds.image_control_scores.ControlScores`.
        steps, guidance: of the drawing.

    Example:
        >>> DrawnScores("segm", count=2).hints.shape
        torch.Size([2, 3, 32, 32])
    """

    signal: str
    encoder: Callable[[], HintEncoder] | None = None
    split: Split = "validation"
    count: int = COUNT
    steps: int = STEPS
    guidance: float = GUIDANCE

    def __call__(self, step: int, family: Family) -> dict[str, float]:
        """The scores of ``family``, named as ``ControlScores.of`` names them."""
        return self.scenes.of(self.draw(family))

    def draw(self, family: Family) -> Tensor:
        """The pictures that are scored: uint8 ``[n, 3, 32, 32]``."""
        prompts, seeds = [prompt.text for prompt in self.scenes.wanted], self.scenes.seeds
        options: dict[str, Any] = {"steps": self.steps, "guidance": self.guidance}
        if self.encoder is None:
            return family.generate(prompts, seeds, **options).cpu()
        return generate_hinted(family, self.encoder(), prompts, self.hints, seeds, **options).cpu()

    @cached_property
    def scenes(self) -> ControlScores:
        """What is to be drawn."""
        return ControlScores(self.split, self.count)

    @cached_property
    def hints(self) -> Tensor:
        """The control pictures: float32 ``[n, 3, 32, 32]`` of 0..1."""
        if self.signal == _MASKS:
            return self.scenes.masks.float()[:, None].expand(-1, 3, -1, -1)
        kind = condition(self.signal)
        made = [kind.made(picture.permute(1, 2, 0).numpy()) for picture in self.scenes.images]
        return torch.stack([torch.from_numpy(one).permute(2, 0, 1).float() / 255 for one in made])
