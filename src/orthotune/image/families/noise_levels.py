"""At which levels of noise a denoiser is trained: the distribution of times, its range, and the shift of a flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

#: ``model``: as the model was trained. ``logit-normal``: the sigmoid of a normal variable (arXiv 2403.03206, 3.1).
Distribution = Literal["model", "uniform", "logit-normal"]


@dataclass(frozen=True)
class NoiseLevels:
    """The distribution of the noise level of a training step: 0 is the image, 1 is pure noise.

    Args:
        distribution: of the levels.
        mean: of the normal variable of ``logit-normal``; above 0 trains more at strong noise, which decides shapes.
        std: its standard deviation.
        shift: of a flow, instead of that in the config of the scheduler: levels ``s`` become
            ``shift s / (1 + (shift - 1) s)``. None keeps it.
        least: smallest level, before the shift.
        most: largest level, before the shift.

    Example:
        >>> levels = NoiseLevels("uniform", least=0.5).sample(100, torch.Generator().manual_seed(0), False)
        >>> bool(levels.min() >= 0.5)
        True
    """

    distribution: Distribution = "model"
    mean: float = 0.0
    std: float = 1.0
    shift: float | None = None
    least: float = 0.0
    most: float = 1.0

    @property
    def usual(self) -> bool:
        """Whether levels are sampled as the model itself does, apart from the shift."""
        return self.distribution == "model" and (self.least, self.most) == (0.0, 1.0)

    def sample(self, count: int, generator: torch.Generator, logit_normal: bool) -> Tensor:
        """Sample levels.

        Args:
            count: number of levels.
            generator: on the CPU.
            logit_normal: the distribution of the model, for ``model``.

        Returns:
            float32 ``[count]`` on the CPU, before the shift.
        """
        if self.distribution == "logit-normal" or (self.distribution == "model" and logit_normal):
            share = (self.mean + self.std * torch.randn(count, generator=generator)).sigmoid()
        else:
            share = torch.rand(count, generator=generator)
        return self.least + (self.most - self.least) * share


#: Levels as the model itself was trained.
OF_MODEL = NoiseLevels()


def shifted_sigmas(steps: int, shift: float) -> Tensor:
    """The sigmas of a flow with a shift, from 1 towards 0, float32 ``[steps]``.

    Args:
        steps: of the scheduler.
        shift: as ``shift`` of diffusers' FlowMatchEulerDiscreteScheduler.

    Example:
        >>> shifted_sigmas(2, 3.0)
        tensor([1.0000, 0.7500])
    """
    sigmas = torch.arange(steps, 0, -1, dtype=torch.float32) / steps
    return shift * sigmas / (1 + (shift - 1) * sigmas)
