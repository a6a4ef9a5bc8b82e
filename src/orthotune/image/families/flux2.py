"""FLUX.2: a transformer on 2 x 2 patches of latents that are normalized by statistics of the VAE (BFL 2025)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from orthotune.image.data.batch import Conditions
from orthotune.image.families.flux import TRAINING_GUIDANCE
from orthotune.image.families.transformer_family import TransformerFamily


class Flux2Klein(TransformerFamily):
    """FLUX.2 klein, with Qwen3 as its text encoder. Training times are uniform, as in diffusers' example."""

    name = "flux2-klein"
    pipeline_class = "Flux2KleinPipeline"
    attention = (
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "to_qkv_mlp_proj",
    )  # fmt: skip
    patch = 1  # the latents of this family are the patches

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self.usual_guidance = 1.0 if getattr(pipeline.config, "is_distilled", False) else 4.0

    @property
    def pixels_per_latent(self) -> int:
        return super().pixels_per_latent * 2

    def latent_shape(self, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        channels, rows, columns = super().latent_shape(height, width, frames)
        return 4 * channels, rows, columns

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        vae = self.pipeline.vae
        mean, variance = (part.view(1, -1, 1, 1).to(like.device, like.dtype)
                          for part in (vae.bn.running_mean, vae.bn.running_var))  # fmt: skip
        return mean, (variance + vae.config.batch_norm_eps).sqrt()

    def _scaled(self, latents: Tensor) -> Tensor:
        patches: Tensor = self.pipeline._patchify_latents(latents)
        mean, std = self._statistics(patches)
        return (patches - mean) / std

    def _unscaled(self, latents: Tensor) -> Tensor:
        mean, std = self._statistics(latents)
        found: Tensor = self.pipeline._unpatchify_latents(latents * std + mean)
        return found

    def _encode(self, captions: list[str]) -> Conditions:
        return {"encoder_hidden_states": self.pipeline.encode_prompt(captions, device=self.device)[0]}

    def _guidance_input(self, noisy: Tensor) -> Tensor | None:
        return None

    def velocity(self, denoiser: nn.Module, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        inputs = self.inputs(conditions, noisy)
        height, width = noisy.shape[-2:]
        found = denoiser(
            hidden_states=noisy.flatten(2).mT.to(self.dtype),
            timestep=times,
            guidance=self._guidance_input(noisy),
            txt_ids=self.pipeline._prepare_text_ids(inputs["encoder_hidden_states"]).to(noisy.device),
            img_ids=self.pipeline._prepare_latent_ids(noisy).to(noisy.device),
            **inputs,
            return_dict=False,
        )[0]
        tokens: Tensor = found.mT.unflatten(2, (height, width))
        return tokens

    def _sample(self, prompts: list[str], generators: list[torch.Generator], **options: Any) -> Tensor:
        # The pipeline returns latents of the VAE.
        return self._scaled(super()._sample(prompts, generators, **options).float())


class Flux2(Flux2Klein):
    """FLUX.2 dev, whose guidance is an input, with Mistral as its text encoder."""

    name = "flux2"
    pipeline_class = "Flux2Pipeline"

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self.usual_guidance = 4.0

    def _guidance_input(self, noisy: Tensor) -> Tensor | None:
        return torch.full((len(noisy),), TRAINING_GUIDANCE, device=noisy.device)
