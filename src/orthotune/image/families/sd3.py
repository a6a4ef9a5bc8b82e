"""Stable Diffusion 3 and 3.5: a transformer of joint attention, two CLIP encoders and T5 (Esser et al. 2024)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from orthotune.image.data.batch import Conditions
from orthotune.image.families.flow_matching import FlowFamily, FlowTimes


class StableDiffusion3(FlowFamily):
    """SD3. A pipeline without T5 uses zeros in its place, like diffusers.

    The loss is that of the velocity, at times of logit-normal density, as published.
    """

    name = "sd3"
    pipeline_class = "StableDiffusion3Pipeline"
    denoiser_name = "transformer"
    text_encoder_names: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2", "text_encoder_3")
    attention = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    entry = "pos_embed.proj"
    usual_guidance = 7.0

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self.times = FlowTimes.of(pipeline.scheduler, logit_normal=True)

    @property
    def divisor(self) -> int:
        return self.pixels_per_latent * int(self.pipeline.transformer.config.patch_size)

    @property
    def native_size(self) -> int:
        return int(self.pipeline.transformer.config.sample_size) * self.pixels_per_latent

    def _encode(self, captions: list[str]) -> Conditions:
        tokens, _, pooled, _ = self.pipeline.encode_prompt(
            captions, None, None, device=self.device, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": tokens, "pooled_projections": pooled}

    def velocity(self, denoiser: nn.Module, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        inputs = {name: tensor.to(noisy.device, self.dtype) for name, tensor in conditions.items()}
        steps = self.pipeline.scheduler.config.num_train_timesteps
        seen = noisy.to(self.dtype)
        found: Tensor = denoiser(hidden_states=seen, timestep=times * steps, **inputs, return_dict=False)[0]
        return found

    def idle_modules(self, component: str) -> tuple[str, ...]:
        if component != self.denoiser_name:
            return ()
        # The last joint block discards the text stream, so that its add_q_proj gets no gradient.
        return (f"transformer_blocks.{self.pipeline.transformer.config.num_layers - 1}.attn.add_q_proj",)
