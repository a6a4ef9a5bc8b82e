"""LTX-2: a transformer on films and their sound, whose captions go through two connectors (Lightricks 2026)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from orthotune.image.data.batch import Conditions
from orthotune.image.families.ltx_video import LTXVideo


class LTX2(LTXVideo):
    """The video part of LTX-2 and LTX-2.3 from text, trained without sound.

    In training the two streams are isolated from each other, as the pipeline isolates them to guide; the layers of
    sound and those between sound and film get no adapter. Samples are generated with sound, by classifier-free guidance
    alone.
    """

    name = "ltx-2"
    pipeline_class = "LTX2Pipeline"
    # the dot before attn1 and attn2 leaves audio_attn1 and audio_attn2 out
    attention: ClassVar[tuple[str, ...]] = tuple(
        f"{block}.{name}" for block in ("attn1", "attn2") for name in ("to_q", "to_k", "to_v", "to_out.0")
    )
    tokens = 1024
    frame_rate = 24

    def resting_parts(self) -> list[nn.Module]:
        further = ("connectors", "audio_vae", "vocoder", "prompt_enhancer", "duration_head")
        return [*super().resting_parts(), *(part for name, part in self.modules().items() if name in further)]

    def _encode(self, captions: list[str]) -> Conditions:
        pipeline = self.pipeline
        tokens, mask, _, _ = pipeline.encode_prompt(
            captions, do_classifier_free_guidance=False, max_sequence_length=self.tokens, device=self.device
        )
        film, sound, mask = pipeline.connectors(tokens, mask, padding_side=pipeline.tokenizer.padding_side)
        return {"encoder_hidden_states": film, "audio_encoder_hidden_states": sound, "encoder_attention_mask": mask}

    def _sound(self, frames: int) -> tuple[int, int]:
        """Tokens of the sound beside so many frames of pixels, and their width."""
        pipeline, config = self.pipeline, self.pipeline.audio_vae.config
        hop = pipeline.audio_hop_length * pipeline.audio_vae_temporal_compression_ratio
        bins = config.mel_bins // pipeline.audio_vae_mel_compression_ratio
        return round(frames / self.frame_rate * pipeline.audio_sampling_rate / hop), config.latent_channels * bins

    def velocity(self, denoiser: nn.Module, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        frames, height, width = noisy.shape[-3:]
        pipeline, inputs, rope = self.pipeline, self.inputs(conditions, noisy), self.pipeline.transformer
        at = times * pipeline.scheduler.config.num_train_timesteps
        length, channels = self._sound(1 + (frames - 1) * pipeline.vae_temporal_compression_ratio)
        found = denoiser(
            hidden_states=pipeline._pack_latents(noisy, *self._patches).to(self.dtype),
            audio_hidden_states=torch.zeros(len(noisy), length, channels, device=noisy.device, dtype=self.dtype),
            audio_encoder_attention_mask=inputs["encoder_attention_mask"],
            timestep=at,
            sigma=at,
            num_frames=frames,
            height=height,
            width=width,
            fps=float(self.frame_rate),
            audio_num_frames=length,
            video_coords=rope.rope.prepare_video_coords(
                len(noisy), frames, height, width, noisy.device, fps=float(self.frame_rate)
            ),
            audio_coords=rope.audio_rope.prepare_audio_coords(len(noisy), length, noisy.device),
            isolate_modalities=True,
            use_cross_timestep=True,
            **inputs,
            return_dict=False,
        )[0]
        latents: Tensor = pipeline._unpack_latents(found, frames, height, width, *self._patches)
        return latents

    def _sample(self, prompts: list[str], generators: list[torch.Generator], **options: Any) -> Tensor:
        found = self.pipeline(
            prompt=prompts, generator=generators, output_type="latent", frame_rate=float(self.frame_rate),
            max_sequence_length=self.tokens, **WITHOUT_FURTHER_GUIDANCE, **options,
        )  # fmt: skip
        return self._scaled(found.frames.float())  # the pipeline returns latents of the VAE


#: of the pipeline: guidance by blocks and by sound, which take another two calls of the transformer each, and rescaling
WITHOUT_FURTHER_GUIDANCE: dict[str, Any] = {
    "stg_scale": 0.0, "audio_stg_scale": None, "modality_scale": 1.0, "audio_modality_scale": None,
    "guidance_rescale": 0.0, "audio_guidance_rescale": None, "audio_guidance_scale": None,
    "spatio_temporal_guidance_blocks": None,
}  # fmt: skip
