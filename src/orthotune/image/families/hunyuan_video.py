"""HunyuanVideo: a transformer on films with Llama tokens and a pooled CLIP embedding (Tencent, arXiv 2412.03603)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from orthotune.image.data.batch import Conditions
from orthotune.image.families.flux import TRAINING_GUIDANCE
from orthotune.image.families.transformer_family import TransformerFamily


class HunyuanVideo(TransformerFamily):
    """HunyuanVideo from text. Its guidance is an input, counted in thousandths."""

    name = "hunyuan-video"
    pipeline_class = "HunyuanVideoPipeline"
    text_encoder_names: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    attention: ClassVar[tuple[str, ...]] = (
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
    )  # fmt: skip
    usual_guidance = 6.0
    native = 720
    multiple = 16
    tokens = 256
    frames = films = True

    def _encode(self, captions: list[str]) -> Conditions:
        tokens, pooled, mask = self.pipeline.encode_prompt(
            captions, prompt_template=self._template, device=self.device, max_sequence_length=self.tokens
        )
        return {"encoder_hidden_states": tokens, "encoder_attention_mask": mask, "pooled_projections": pooled}

    @property
    def _template(self) -> dict[str, Any]:
        """The instruction around a caption for Llama."""
        from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE

        return dict(DEFAULT_PROMPT_TEMPLATE)

    def velocity(self, denoiser: nn.Module, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        guidance = torch.full((len(noisy),), TRAINING_GUIDANCE * 1000, device=noisy.device, dtype=self.dtype)
        found: Tensor = denoiser(
            hidden_states=noisy.to(self.dtype),
            timestep=times * self.pipeline.scheduler.config.num_train_timesteps,
            guidance=guidance if self.pipeline.transformer.config.guidance_embeds else None,
            **self.inputs(conditions, noisy),
            return_dict=False,
        )[0]
        return found

    def _sample(self, prompts: list[str], generators: list[torch.Generator], **options: Any) -> Tensor:
        found = self.pipeline(
            prompt=prompts, generator=generators, output_type="latent", prompt_template=self._template,
            max_sequence_length=self.tokens, **options,
        )  # fmt: skip
        latents: Tensor = found.frames
        return latents
