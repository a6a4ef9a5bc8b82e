"""HunyuanVideo 1.5: a transformer on films with Qwen2.5-VL tokens, and ByT5 for words in quotes (Tencent 2025)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from orthotune.errors import RecipeError
from orthotune.image.data.batch import Conditions
from orthotune.image.families.transformer_family import TransformerFamily


class HunyuanVideo15(TransformerFamily):
    """HunyuanVideo 1.5 from text. Its transformer reads an empty first frame, too."""

    name = "hunyuan-video-15"
    pipeline_class = "HunyuanVideo15Pipeline"
    text_encoder_names: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    attention: ClassVar[tuple[str, ...]] = (
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
    )  # fmt: skip
    usual_guidance = 6.0
    patch = 1
    frames = films = True

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        pipeline.vae.enable_slicing()  # its mask of attention is made for one film (diffusers 0.42)

    @property
    def native_size(self) -> int:
        return int(self.pipeline.target_size)

    @property
    def pixels_per_latent(self) -> int:
        return int(self.pipeline.vae.spatial_compression_ratio)

    def idle_modules(self, component: str) -> tuple[str, ...]:
        # The words of the last block are discarded; its keys and values of words are still read.
        last = f"transformer_blocks.{len(self.pipeline.transformer.transformer_blocks) - 1}.attn."
        return tuple(last + name for name in ("add_q_proj", "to_add_out")) if component == self.denoiser_name else ()

    def _encode(self, captions: list[str]) -> Conditions:
        found = self.pipeline.encode_prompt(captions, device=self.device, batch_size=len(captions))
        names = ("encoder_hidden_states", "encoder_attention_mask", "encoder_hidden_states_2",
                 "encoder_attention_mask_2")  # fmt: skip
        return dict(zip(names, found, strict=True))

    def velocity(self, denoiser: nn.Module, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        pipeline, latents = self.pipeline, noisy.to(self.dtype)
        empty = latents.new_zeros(len(noisy), pipeline.vision_num_semantic_tokens, pipeline.vision_states_dim)
        first, mask = pipeline.prepare_cond_latents_and_mask(latents, self.dtype, noisy.device)
        found: Tensor = denoiser(
            hidden_states=torch.cat([latents, first, mask], dim=1),
            image_embeds=empty,
            timestep=(times * pipeline.scheduler.config.num_train_timesteps).to(self.dtype),
            **self.inputs(conditions, noisy),
            return_dict=False,
        )[0]
        return found

    def _guidance(self, scale: float) -> dict[str, Any]:
        return {"guidance": scale}

    def _sample(self, prompts: list[str], generators: list[torch.Generator], **options: Any) -> Tensor:
        # The scale is a part of the pipeline, not an argument.
        guider, scale = self.pipeline.guider, options.pop("guidance")
        if not hasattr(guider, "guidance_scale"):
            raise RecipeError(
                f"guidance of {scale:g} for {self.name}", got=f"a {type(guider).__name__} as guider",
                needed="one with a guidance_scale",
            )  # fmt: skip
        self.pipeline.guider = guider.new(guidance_scale=scale)
        try:
            found = self.pipeline(prompt=prompts, generator=generators, output_type="latent", **options)
        finally:
            self.pipeline.guider = guider
        latents: Tensor = found.frames
        return latents
