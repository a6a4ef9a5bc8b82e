"""LTX-Video: a transformer on the latents of a VAE of 32 x 32 pixels and 8 frames (Lightricks, arXiv 2501.00103)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from orthotune.image.data.batch import Conditions
from orthotune.image.families.transformer_family import TransformerFamily


class LTXVideo(TransformerFamily):
    """LTX-Video from text. Times are logit-normal, as finetrainers has them for LTX."""

    name = "ltx-video"
    pipeline_class = "LTXPipeline"
    attention: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    logit_normal = True
    usual_guidance = 3.0
    patch = 1
    native = 512
    tokens = 128
    multiple = 32
    frames = films = True
    #: by which the positions in time are scaled: the default of the pipeline
    frame_rate = 25

    @property
    def pixels_per_latent(self) -> int:
        return int(self.pipeline.vae.spatial_compression_ratio)

    def _latent_statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        vae = self.pipeline.vae
        known = (vae.latents_mean, vae.latents_std)
        mean, std = (part.view(1, -1, 1, 1, 1).to(like.device, like.dtype) for part in known)
        return mean, std / vae.config.scaling_factor

    def _pixels(self, latents: Tensor) -> Tensor:
        # Later versions of the VAE denoise while they decode; at the time 0, as in the pipeline by default.
        vae = self.pipeline.vae
        at = latents.new_zeros(len(latents)) if vae.config.timestep_conditioning else None
        found: Tensor = vae.decode(latents, at, return_dict=False)[0]
        return found

    def _encode(self, captions: list[str]) -> Conditions:
        tokens, mask, _, _ = self.pipeline.encode_prompt(
            captions, do_classifier_free_guidance=False, max_sequence_length=self.tokens, device=self.device
        )
        return {"encoder_hidden_states": tokens, "encoder_attention_mask": mask}

    @property
    def _patches(self) -> tuple[int, int]:
        config = self.pipeline.transformer.config
        return int(config.patch_size), int(config.patch_size_t)

    def velocity(self, denoiser: nn.Module, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        frames, height, width = noisy.shape[-3:]
        pipeline, cell = self.pipeline, self.pixels_per_latent
        found = denoiser(
            hidden_states=pipeline._pack_latents(noisy, *self._patches).to(self.dtype),
            timestep=times * pipeline.scheduler.config.num_train_timesteps,
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(pipeline.vae_temporal_compression_ratio / self.frame_rate, cell, cell),
            **self.inputs(conditions, noisy),
            return_dict=False,
        )[0]
        latents: Tensor = pipeline._unpack_latents(found, frames, height, width, *self._patches)
        return latents

    def _sample(self, prompts: list[str], generators: list[torch.Generator], **options: Any) -> Tensor:
        packed = self.pipeline(
            prompt=prompts, generator=generators, output_type="latent", frame_rate=self.frame_rate,
            max_sequence_length=self.tokens, **options,
        ).frames  # fmt: skip
        _, *shape = self.latent_shape(options["height"], options["width"], options["num_frames"])
        latents: Tensor = self.pipeline._unpack_latents(packed, *shape, *self._patches)
        return latents
