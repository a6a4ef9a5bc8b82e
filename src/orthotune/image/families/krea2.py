"""Krea 2: a transformer that reads twelve layers of Qwen3-VL, on packed latents of Qwen-Image's VAE (Krea 2026)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from orthotune.image.data.batch import Conditions
from orthotune.image.families.flux import pack, unpack
from orthotune.image.families.transformer_family import TransformerFamily


class Krea2(TransformerFamily):
    """Krea 2. Training times are uniform, by analogy to Qwen-Image.

    Its guidance counts from 0, not from 1: the velocity is ``v + g (v - v of no words)``.
    """

    name = "krea2"
    pipeline_class = "Krea2Pipeline"
    attention: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    frames = True

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self.usual_guidance = 0.0 if pipeline.config.is_distilled else 4.5

    def _encode(self, captions: list[str]) -> Conditions:
        tokens, mask = self.pipeline.encode_prompt(captions, device=self.device, max_sequence_length=self.tokens)
        return {"encoder_hidden_states": tokens, "encoder_attention_mask": mask}

    def velocity(self, denoiser: nn.Module, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        inputs = self.inputs(conditions, noisy)
        height, width = noisy.shape[-2:]
        length = inputs["encoder_hidden_states"].shape[1]
        found = denoiser(
            hidden_states=pack(noisy.squeeze(2)).to(self.dtype),
            timestep=times,
            position_ids=self.pipeline.prepare_position_ids(length, height // 2, width // 2, noisy.device),
            **inputs,
            return_dict=False,
        )[0]
        return unpack(found, height, width).unsqueeze(2)

    def _sample(self, prompts: list[str], generators: list[Any], **options: Any) -> Tensor:
        packed = super()._sample(prompts, generators, max_sequence_length=self.tokens, **options)
        return unpack(packed, *(options[side] // self.pixels_per_latent for side in ("height", "width"))).unsqueeze(2)
