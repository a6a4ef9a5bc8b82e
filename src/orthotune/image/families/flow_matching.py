"""Rectified flows, the training target of SD3 and FLUX: straight lines from noise to images, and their times.

At time ``s`` the model reads ``(1 - s) x + s e`` and predicts the velocity ``e - x`` of the line (Lipman et al. 2022,
arXiv 2210.02747; Esser et al. 2024, arXiv 2403.03206, section 2).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from orthotune.errors import RecipeError
from orthotune.image.adapter.kept_predictions import kept_targets
from orthotune.image.data.batch import Conditions
from orthotune.image.families.family import LossOptions
from orthotune.image.families.noise_levels import OF_MODEL, NoiseLevels, shifted_sigmas
from orthotune.image.families.noise_schedule import sample_noise
from orthotune.image.families.pipeline_family import PipelineFamily
from orthotune.image.families.weighted_error import squared_error


@dataclass(frozen=True)
class FlowTimes:
    """The distribution of times in training.

    Args:
        sigmas: float32 [steps], from 1, pure noise, towards 0, within ``least`` and ``below``; shifted as in the config
            of the scheduler. A shift that depends on the size of the image is used for generation only, as in the
            examples of diffusers.
        logit_normal: the sigmoid of a standard normal variable gives the times, as in the paper on SD3 (arXiv
            2403.03206, section 3.1, ``rf/lognorm(0.00, 1.00)``); otherwise the times are uniform.
        least: no sigma below it is sampled with another shift either, as by one of several denoisers.
        below: no sigma from it on is sampled with another shift.

    Example:
        >>> times = FlowTimes(torch.linspace(1, 0.001, 1000), logit_normal=True)
        >>> bool((times.sample(1000, torch.Generator().manual_seed(0)) - 0.5).abs().mean() < 0.2)
        True
    """

    sigmas: Tensor
    logit_normal: bool
    least: float = 0.0
    below: float = math.inf

    @classmethod
    def of(cls, scheduler: Any, logit_normal: bool) -> FlowTimes:
        """The times for the config of a diffusers scheduler.

        Args:
            scheduler: of diffusers.
            logit_normal: see the class.

        Raises:
            RecipeError: the scheduler is not for flow matching.
        """
        from diffusers import FlowMatchEulerDiscreteScheduler

        config = scheduler.config
        # UniPC and others also run on the sigmas of a flow, with a shift of another name.
        shift = config.get("flow_shift") if config.get("use_flow_sigmas") else config.get("shift")
        if shift is None or ("beta_schedule" in config and not config.get("use_flow_sigmas")):
            raise RecipeError(
                f"scheduler {type(scheduler).__name__} of the model", needed="a scheduler of flow matching"
            )
        fresh = FlowMatchEulerDiscreteScheduler(
            num_train_timesteps=config.num_train_timesteps,
            shift=shift,
            use_dynamic_shifting=bool(config.get("use_dynamic_shifting")),
        )
        return cls(fresh.sigmas, logit_normal)

    def sample(self, count: int, generator: torch.Generator, levels: NoiseLevels = OF_MODEL) -> Tensor:
        """Sample times.

        Args:
            count: number of times.
            generator: on the CPU.
            levels: another distribution than that of the model.

        Returns:
            float32 [count] on the CPU.
        """
        sigmas = self.sigmas
        if levels.shift is not None:
            every = shifted_sigmas(len(self.sigmas), levels.shift)
            sigmas = every[(every >= self.least) & (every < self.below)]
        if not levels.usual:
            position = 1 - levels.sample(count, generator, self.logit_normal)
        elif self.logit_normal:
            position = torch.randn(count, generator=generator).sigmoid()
        else:
            position = torch.rand(count, generator=generator)
        steps = len(sigmas)
        return sigmas[(position * steps).long().clamp(max=steps - 1)]


class FlowFamily(PipelineFamily):
    """A family whose denoiser predicts the velocity of a rectified flow."""

    times: FlowTimes

    @abstractmethod
    def velocity(self, denoiser: nn.Module, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        """The velocity that a denoiser predicts.

        Args:
            denoiser: the module to call.
            noisy: latents ``[n, c, h, w]``, or ``[n, c, frames, h, w]``.
            times: ``[n]`` of 0..1.
            conditions: from ``encode_captions``.

        Returns:
            float32 in the shape of ``noisy``.
        """

    def check_options(self, options: LossOptions) -> None:
        for field in ("min_snr_gamma", "noise_offset"):
            if value := getattr(options, field):
                raise RecipeError(
                    f"{field.removesuffix('_gamma')}={value} for {self.name}",
                    got="a model of flow matching, which has its own weighting", do="Leave it out",
                )  # fmt: skip

    def losses(
        self, denoiser: nn.Module, latents: Tensor, conditions: Conditions, generator: torch.Generator,
        options: LossOptions, kept: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        self.check_options(options)
        times = self.times.sample(len(latents), generator, options.levels).to(latents.device)
        noise = sample_noise(latents, generator)
        at = times.view(-1, *[1] * (latents.ndim - 1))
        noisy = (1 - at) * latents + at * noise

        def velocity(rows: Tensor | slice) -> Tensor:
            inputs = {name: value[rows] for name, value in conditions.items()}
            return self.velocity(denoiser, noisy[rows], times[rows], inputs).float()

        with self.precision():
            target = kept_targets(noise - latents, kept, denoiser, velocity)
            guess = velocity(slice(None))
        return squared_error(guess, target, options.mask)
