"""Stable Diffusion 1 and 2: a UNet, one CLIP text encoder, discrete noise steps (Rombach et al. 2022, 2112.10752)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from orthotune.errors import RecipeError
from orthotune.image.adapter.kept_predictions import kept_targets
from orthotune.image.data.batch import Conditions
from orthotune.image.families.family import LossOptions
from orthotune.image.families.noise_schedule import NoiseSchedule, sample_noise
from orthotune.image.families.pipeline_family import PipelineFamily
from orthotune.image.families.weighted_error import squared_error


class StableDiffusion(PipelineFamily):
    """Stable Diffusion 1.x and 2.x, with epsilon, velocity or sample prediction, depending on the scheduler config."""

    name = "stable-diffusion"
    pipeline_class = "StableDiffusionPipeline"
    denoiser_name = "unet"
    text_encoder_names: ClassVar[tuple[str, ...]] = ("text_encoder",)
    attention = ("to_q", "to_k", "to_v", "to_out.0")
    convolutions = ("conv1", "conv2", "conv_shortcut")
    entry = "conv_in"
    usual_guidance = 7.5
    #: ``addition_embed_type`` of the UNets of this family: inputs besides the captions
    addition: ClassVar[str | None] = None

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self._check_unet()
        self.schedule = NoiseSchedule.of(pipeline.scheduler)

    @property
    def generation(self) -> str:
        # The UNets of 2.x have linear projections, and those of 768 pixels predict the velocity.
        if self.addition is not None or not self.pipeline.unet.config.use_linear_projection:
            return self.name
        velocity = self.pipeline.scheduler.config.prediction_type == "v_prediction"
        return "stable-diffusion-2-v" if velocity else "stable-diffusion-2"

    @property
    def divisor(self) -> int:
        # each level of the UNet but the last halves the latents; diffusers requires multiples of 8 for any VAE
        return math.lcm(8, self.pixels_per_latent * int(2 ** (len(self.pipeline.unet.config.block_out_channels) - 1)))

    @property
    def native_size(self) -> int:
        size = self.pipeline.unet.config.sample_size
        return int(size if isinstance(size, int) else size[0]) * self.pixels_per_latent

    def _encode(self, captions: list[str]) -> Conditions:
        found, _ = self.pipeline.encode_prompt(captions, self.device, 1, do_classifier_free_guidance=False)
        return {"encoder_hidden_states": found}

    def check_options(self, options: LossOptions) -> None:
        if options.levels.shift is not None:
            raise RecipeError(
                f"flow_shift={options.levels.shift:g} for {self.name}", got="a model of discrete noise steps",
                needed="a model of flow matching", do="Leave it out",
            )  # fmt: skip

    def losses(
        self, denoiser: nn.Module, latents: Tensor, conditions: Conditions, generator: torch.Generator,
        options: LossOptions, kept: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        times = self.schedule.sample_times(len(latents), generator, options.levels).to(latents.device)
        noise = sample_noise(latents, generator, options.noise_offset)
        noisy = self.schedule.noisy(latents, noise, times)

        def predict(rows: Tensor | slice) -> Tensor:
            given = {name: value[rows] for name, value in conditions.items()}
            inputs, seen = self._unet_inputs(given, latents[rows]), self._seen(noisy[rows], given)
            found: Tensor = denoiser(seen.to(self.dtype), times[rows], **inputs, return_dict=False)[0]
            return found.float()

        with self.precision():
            target = kept_targets(self.schedule.target(latents, noise, times), kept, denoiser, predict)
            guess = predict(slice(None))
        loss = squared_error(guess, target, options.mask)
        if options.min_snr_gamma is not None:
            loss = loss * self.schedule.weights(times, options.min_snr_gamma)
        return loss

    def _unet_inputs(self, conditions: Conditions, latents: Tensor) -> dict[str, Any]:
        """The arguments of the UNet besides latents and times."""
        return {"encoder_hidden_states": conditions["encoder_hidden_states"].to(latents.device, self.dtype)}

    def _seen(self, noisy: Tensor, conditions: Conditions) -> Tensor:
        """The latents that the UNet reads."""
        return noisy

    @property
    def _channels(self) -> int:
        """Channels that the UNet reads."""
        return int(self.pipeline.vae.config.latent_channels)

    def _check_unet(self) -> None:
        unet, vae = self.pipeline.unet.config, self.pipeline.vae.config
        if unet.in_channels != self._channels:
            raise RecipeError(
                f"a {self.name} model whose UNet reads {unet.in_channels} channels",
                got=f"a VAE of {vae.latent_channels}",
                needed="a text-to-image model: models for inpainting, depth or editing read a second image",
            )
        for field, is_for in (("addition_embed_type", self.addition), ("class_embed_type", None),
                              ("time_cond_proj_dim", None), ("encoder_hid_dim_type", None)):  # fmt: skip
            if (value := getattr(unet, field, None)) != is_for:
                raise RecipeError(f"{self.name} with {field}={value!r} in its UNet", needed=f"{is_for!r}")
