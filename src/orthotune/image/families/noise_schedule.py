"""The noise schedule of Stable Diffusion: noisy images, training targets and weights of steps.

An image ``x`` at step ``t`` is ``sqrt(a) x + sqrt(1 - a) e`` with noise ``e`` and ``a = alphas_cumprod[t]``; its
signal-to-noise ratio is ``a / (1 - a)`` (Ho et al. 2020, arXiv 2006.11239, eq. 4).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from orthotune.errors import RecipeError
from orthotune.image.families.noise_levels import OF_MODEL, NoiseLevels

PREDICTIONS = ("epsilon", "v_prediction", "sample")
#: fields of the config of a scheduler that describe training; the others describe sampling
_TRAINED = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr",
    "prediction_type",
)  # fmt: skip


@dataclass(frozen=True)
class NoiseSchedule:
    """The steps of a discrete diffusion and the training target.

    Args:
        alphas_cumprod: float32 [steps], share of the variance of the image at each step; 0 at the last step of a
            schedule with zero terminal SNR.
        prediction: ``"epsilon"`` the noise, ``"sample"`` the image, ``"v_prediction"`` the velocity
            ``sqrt(a) e - sqrt(1 - a) x`` (Salimans and Ho 2022, arXiv 2202.00512, appendix D).

    Example:
        >>> schedule = NoiseSchedule(torch.tensor([0.75, 0.0]), "v_prediction")
        >>> schedule.weights(torch.tensor([0, 1]), gamma=1.0).tolist()  # SNR 3 and 0
        [0.25, 0.0]
    """

    alphas_cumprod: Tensor
    prediction: str

    @classmethod
    def of(cls, scheduler: Any) -> NoiseSchedule:
        """The schedule for the config of a diffusers scheduler of any solver.

        Raises:
            RecipeError: the scheduler has no discrete noise steps.
        """
        from diffusers import DDPMScheduler

        config = dict(scheduler.config)
        prediction = config.get("prediction_type", "epsilon")
        if prediction not in PREDICTIONS or "beta_schedule" not in config or config.get("use_flow_sigmas"):
            raise RecipeError(
                f"scheduler {type(scheduler).__name__} of the model",
                got=f"prediction_type {prediction!r}" if "beta_schedule" in config else "no schedule of noise steps",
                needed=f"a schedule of betas that predicts {', '.join(PREDICTIONS)}",
            )
        try:
            known = DDPMScheduler(**{name: config[name] for name in _TRAINED if name in config})
        except NotImplementedError as fault:
            raise RecipeError(
                f"scheduler {type(scheduler).__name__} of the model", got=f"beta_schedule {config['beta_schedule']!r}"
            ) from fault
        # Rounding can make the last step of a rescaled schedule slightly negative.
        return cls(known.alphas_cumprod.clamp(0.0, 1.0), prediction)

    def sample_times(self, count: int, generator: torch.Generator, levels: NoiseLevels = OF_MODEL) -> Tensor:
        """Sample steps, uniformly unless ``levels`` say otherwise.

        Args:
            count: number of steps.
            generator: on the CPU.
            levels: another distribution of the share of all steps, 1 for the last one.

        Returns:
            int64 [count] on the CPU.
        """
        steps = len(self.alphas_cumprod)
        if levels.usual:
            return torch.randint(steps, (count,), generator=generator)
        return (levels.sample(count, generator, False) * steps).long().clamp(max=steps - 1)

    def noisy(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """The noisy images.

        Args:
            clean: float32 [n, ...].
            noise: in the shape of ``clean``.
            times: int64 [n], a step for each image.
        """
        signal, rest = self._parts(times, clean)
        return signal * clean + rest * noise

    def target(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """The training targets, float32.

        Args:
            clean: float32 [n, ...].
            noise: in the shape of ``clean``.
            times: int64 [n], a step for each image.
        """
        if self.prediction == "epsilon":
            return noise
        if self.prediction == "sample":
            return clean
        signal, rest = self._parts(times, clean)
        return signal * noise - rest * clean

    def weights(self, times: Tensor, gamma: float) -> Tensor:
        """Min-SNR weights (Hang et al. 2023, arXiv 2303.09556, section 3.4).

        ``min(SNR, gamma)`` for a model that predicts the image; divided by ``SNR`` for a model that predicts noise, and
        by ``SNR + 1`` for velocities.

        Args:
            times: int64 [n].
            gamma: largest ratio.

        Returns:
            float32 [n].
        """
        left = self.alphas_cumprod.to(times.device)[times].double()
        ratio = left / (1 - left)
        if self.prediction == "epsilon":
            return (gamma / ratio).clamp(max=1.0).float()  # 1 where there is no signal at all, not 0 / 0
        capped = ratio.clamp(max=gamma)
        return (capped if self.prediction == "sample" else capped / (ratio + 1)).float()

    def _parts(self, times: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        left = self.alphas_cumprod.to(like.device)[times.to(like.device)].view(-1, *[1] * (like.ndim - 1))
        return left.sqrt(), (1 - left).sqrt()


def sample_noise(like: Tensor, generator: torch.Generator, offset: float = 0.0) -> Tensor:
    """Standard normal noise, sampled on the CPU.

    Args:
        like: [n, c, h, w], gives shape and device.
        generator: on the CPU.
        offset: standard deviation of a constant that is added to each channel of each image.

    Returns:
        float32 in the shape and on the device of ``like``.
    """
    noise = torch.randn(like.shape, generator=generator)
    if offset:
        noise = noise + offset * torch.randn(*like.shape[:2], 1, 1, generator=generator)
    return noise.to(like.device)
