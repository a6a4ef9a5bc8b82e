"""Chroma: FLUX.1 schnell with other modulation and T5 alone, whose padding is masked (lodestones 2025)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from orthotune.image.data.batch import Conditions
from orthotune.image.families.flux import pack, unpack
from orthotune.image.families.transformer_family import TransformerFamily


class Chroma(TransformerFamily):
    """Chroma; training times are logit-normal, as sd-scripts recommends for it (``timestep_sampling sigmoid``)."""

    name = "chroma"
    pipeline_class = "ChromaPipeline"
    attention: ClassVar[tuple[str, ...]] = (
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
    )  # fmt: skip
    usual_guidance = 5.0
    logit_normal = True

    def _encode(self, captions: list[str]) -> Conditions:
        found = self.pipeline.encode_prompt(
            captions, device=self.device, do_classifier_free_guidance=False, max_sequence_length=self.tokens
        )
        return {"encoder_hidden_states": found[0], "mask": found[2]}

    def velocity(self, denoiser: nn.Module, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        inputs: dict[str, Any] = self.inputs(conditions, noisy)
        mask, (height, width) = inputs.pop("mask"), noisy.shape[-2:]
        ids = torch.zeros(height // 2, width // 2, 3, device=noisy.device)
        ids[..., 1] = torch.arange(height // 2, device=noisy.device)[:, None]
        ids[..., 2] = torch.arange(width // 2, device=noisy.device)[None, :]
        words = inputs["encoder_hidden_states"]
        found = denoiser(
            hidden_states=pack(noisy).to(self.dtype),
            timestep=times,
            img_ids=ids.flatten(0, 1).to(self.dtype),
            txt_ids=torch.zeros(words.shape[1], 3, device=noisy.device, dtype=self.dtype),
            attention_mask=torch.cat([mask, mask.new_ones(len(noisy), height * width // 4)], dim=1),
            **inputs,
            return_dict=False,
        )[0]
        return unpack(found, height, width)

    def _sample(self, prompts: list[str], generators: list[torch.Generator], **options: Any) -> Tensor:
        packed = super()._sample(prompts, generators, max_sequence_length=self.tokens, **options)
        return unpack(packed, *(options[side] // self.pixels_per_latent for side in ("height", "width")))
