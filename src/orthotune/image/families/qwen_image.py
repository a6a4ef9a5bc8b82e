"""Qwen-Image: a transformer of joint attention on packed latents of a VAE of films (Qwen 2025, arXiv 2508.02324)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from orthotune.image.data.batch import Conditions
from orthotune.image.families.flux import TRAINING_GUIDANCE, pack, unpack
from orthotune.image.families.transformer_family import TransformerFamily, padded, trimmed


class QwenImage(TransformerFamily):
    """Qwen-Image, with Qwen2.5-VL as its text encoder. Training times are uniform, as in diffusers' example."""

    name = "qwen-image"
    pipeline_class = "QwenImagePipeline"
    attention: ClassVar[tuple[str, ...]] = (
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
    )  # fmt: skip
    usual_guidance = 4.0
    native = 1328
    tokens = 1024
    frames = True

    def _encode(self, captions: list[str]) -> Conditions:
        found, mask = self.pipeline.encode_prompt(captions, device=self.device, max_sequence_length=self.tokens)
        mask = torch.ones(found.shape[:2], device=found.device) if mask is None else mask
        tokens, known = padded([row[kept.bool()] for row, kept in zip(found, mask, strict=True)], self.tokens)
        return {"tokens": tokens, "mask": known}

    def velocity(self, denoiser: nn.Module, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        inputs = self.inputs(conditions, noisy)
        images = [noisy.squeeze(2), *inputs.get("references", noisy.new_zeros(len(noisy), 0)).unbind(1)]
        tokens, mask = trimmed(inputs["tokens"], inputs["mask"])
        height, width = noisy.shape[-2:]
        guided = bool(self.pipeline.transformer.config.guidance_embeds)
        found = denoiser(
            hidden_states=torch.cat([pack(one.to(self.dtype)) for one in images], dim=1),
            timestep=times,
            guidance=torch.full((len(noisy),), TRAINING_GUIDANCE, device=noisy.device) if guided else None,
            encoder_hidden_states=tokens,
            encoder_hidden_states_mask=None if mask.all() else mask,
            img_shapes=[[(1, height // 2, width // 2)] * len(images)] * len(noisy),
            return_dict=False,
        )[0]
        return unpack(found[:, : height // 2 * (width // 2)], height, width).unsqueeze(2)

    def idle_modules(self, component: str) -> tuple[str, ...]:
        if component != self.denoiser_name:
            return ()
        # The last block discards the text stream.
        last = f"transformer_blocks.{self.pipeline.transformer.config.num_layers - 1}.attn"
        return (f"{last}.add_q_proj", f"{last}.to_add_out")

    def _guidance(self, scale: float) -> dict[str, Any]:
        # Classifier-free guidance needs a negative prompt; the family's own examples use a blank one.
        return {"true_cfg_scale": scale, "negative_prompt": " "} if scale > 1 else {"true_cfg_scale": 1.0}

    def _sample(self, prompts: list[str], generators: list[torch.Generator], **options: Any) -> Tensor:
        if "negative_prompt" in options:
            options["negative_prompt"] = [options["negative_prompt"]] * len(prompts)
        packed = super()._sample(prompts, generators, **options)
        sides = (options[side] // self.pixels_per_latent for side in ("height", "width"))
        return unpack(packed, *sides).unsqueeze(2)
