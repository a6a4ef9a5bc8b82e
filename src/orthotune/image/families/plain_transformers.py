"""Lumina 2, AuraFlow and SANA: transformers that take latents, a time, and captions with or without a mask."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from orthotune.image.data.batch import Conditions
from orthotune.image.families.transformer_family import TransformerFamily


class PlainTransformer(TransformerFamily):
    """A transformer that is called with latents as they are; a family states how it counts the times.

    Attributes:
        time_scale: what the transformer reads at the time 1, pure noise; 0 for a time that runs to the image.
        masked: whether the transformer reads the mask of a caption.
    """

    time_scale: ClassVar[float] = 1.0
    masked: ClassVar[bool] = True

    def _encode(self, captions: list[str]) -> Conditions:
        found = self.pipeline.encode_prompt(
            captions, do_classifier_free_guidance=False, device=self.device, **self._encoding()
        )
        return {"encoder_hidden_states": found[0], **({"encoder_attention_mask": found[1]} if self.masked else {})}

    def _encoding(self) -> dict[str, Any]:
        """Further arguments of the pipeline's ``encode_prompt``."""
        return {}

    def velocity(self, denoiser: nn.Module, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        found: Tensor = denoiser(
            hidden_states=noisy.to(self.dtype),
            timestep=times * self.time_scale if self.time_scale else 1 - times,
            **self.inputs(conditions, noisy),
            return_dict=False,
        )[0]
        return found if self.time_scale else -found


class Lumina2(PlainTransformer):
    """Lumina Image 2.0, with Gemma 2 as its text encoder (Alpha-VLLM 2025, arXiv 2503.21758)."""

    name = "lumina2"
    pipeline_class = "Lumina2Pipeline"
    attention: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    usual_guidance = 4.0
    time_scale = 0.0


class AuraFlow(PlainTransformer):
    """AuraFlow, with Pile-T5 as its text encoder (fal 2024)."""

    name = "auraflow"
    pipeline_class = "AuraFlowPipeline"
    attention: ClassVar[tuple[str, ...]] = (
        "to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out",
    )  # fmt: skip
    usual_guidance = 3.5
    masked = False


class Sana(PlainTransformer):
    """SANA, whose VAE is a deterministic autoencoder of 32 pixels a latent (NVIDIA 2024, arXiv 2410.10629)."""

    name = "sana"
    pipeline_class = "SanaPipeline"
    attention: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    usual_guidance = 4.5
    patch = 1
    multiple = 32
    tokens = 300

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        scale = pipeline.transformer.config.timestep_scale
        self.read_at_noise = float(scale) * pipeline.scheduler.config.num_train_timesteps

    @property
    def pixels_per_latent(self) -> int:
        return int(2 ** (len(self.pipeline.vae.config.encoder_block_out_channels) - 1))

    @torch.no_grad()
    def encode_images(self, images: Tensor, generator: torch.Generator) -> Tensor:
        self.check_images(images)
        with self.working():
            vae = self.pipeline.vae
            return self._scaled(vae.encode(images.to(vae.device, vae.dtype) / 127.5 - 1).latent.float())

    def _encoding(self) -> dict[str, Any]:
        import inspect

        # The pipeline adds an instruction to each prompt by default, of its own list.
        default = inspect.signature(type(self.pipeline).__call__).parameters["complex_human_instruction"].default
        return {"complex_human_instruction": default, "max_sequence_length": self.tokens}

    def velocity(self, denoiser: nn.Module, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        return super().velocity(denoiser, noisy, times * self.read_at_noise, conditions)

    def _sample(self, prompts: list[str], generators: list[torch.Generator], **options: Any) -> Tensor:
        return super()._sample(prompts, generators, use_resolution_binning=False, **options)
