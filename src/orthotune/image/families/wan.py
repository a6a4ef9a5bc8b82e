"""Wan 2.1 and 2.2: transformers on films, trained here on images and on clips (Wan 2025, arXiv 2503.20314)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from orthotune.errors import RecipeError
from orthotune.image.data.batch import Conditions
from orthotune.image.families.transformer_family import TransformerFamily


class Wan(TransformerFamily):
    """Wan from text. Times are uniform before the shift of the scheduler, as musubi-tuner trains it.

    Wan 2.2 of 14 billion parameters has two experts, one for each end of the times: ``transformer`` for much noise,
    ``transformer_2`` for little noise. The first is trained unless :meth:`train_expert` names the other one, each at
    its own times only.
    """

    name = "wan"
    pipeline_class = "WanPipeline"
    attention: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    usual_guidance = 5.0
    native = 480
    multiple = 16
    frames = films = True
    frame_rate = 16

    def __init__(self, pipeline: Any) -> None:
        if pipeline.config.expand_timesteps:
            raise RecipeError(
                "a Wan model whose tokens have times of their own (TI2V)", needed="a model from text alone (T2V)"
            )
        if pipeline.transformer is None:
            raise RecipeError("a Wan pipeline", got="no transformer", needed="the expert for the times of much noise")
        super().__init__(pipeline)
        self._all_times = self.times
        if self._experts:
            self.train_expert("high-noise")

    @property
    def _experts(self) -> bool:
        return self.pipeline.config.boundary_ratio is not None and self.pipeline.transformer_2 is not None

    @property
    def expert(self) -> str | None:
        return None if not self._experts else "high-noise" if self.denoiser_name == "transformer" else "low-noise"

    def train_expert(self, expert: str) -> None:
        if not self._experts:
            super().train_expert(expert)
        boundary, noisy = self.pipeline.config.boundary_ratio, expert == "high-noise"
        self.denoiser_name = "transformer" if noisy else "transformer_2"
        sigmas = self._all_times.sigmas
        within = sigmas[(sigmas >= boundary) == noisy]
        self.times = replace(self._all_times, sigmas=within, **{"least" if noisy else "below": boundary})

    def _encode(self, captions: list[str]) -> Conditions:
        tokens, _ = self.pipeline.encode_prompt(
            captions, do_classifier_free_guidance=False, max_sequence_length=self.tokens, device=self.device
        )
        return {"encoder_hidden_states": tokens}

    def velocity(self, denoiser: nn.Module, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        steps = self.pipeline.scheduler.config.num_train_timesteps
        found: Tensor = denoiser(
            hidden_states=noisy.to(self.dtype),
            timestep=times * steps,
            **self.inputs(conditions, noisy),
            return_dict=False,
        )[0]
        return found

    def _sample(self, prompts: list[str], generators: list[torch.Generator], **options: Any) -> Tensor:
        found = self.pipeline(
            prompt=prompts, generator=generators, output_type="latent", max_sequence_length=self.tokens,
            **options,
        )  # fmt: skip
        latents: Tensor = found.frames
        return latents
