"""FLUX.1: a transformer on packed latents, with T5 tokens and the pooled CLIP embedding (Black Forest Labs 2024)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from orthotune.image.data.batch import Conditions
from orthotune.image.families.flow_matching import FlowFamily, FlowTimes

#: Guidance input of a guidance-distilled model (dev) in training: 1, because the data are not guided.
TRAINING_GUIDANCE = 1.0
#: tokens that T5 reads: in dev, and in models without guidance (schnell)
_TOKENS, _TOKENS_UNGUIDED = 512, 256


class Flux(FlowFamily):
    """FLUX.1 dev, which has the guidance as an input, and schnell, which has not. Training times are uniform."""

    name = "flux"
    pipeline_class = "FluxPipeline"
    denoiser_name = "transformer"
    text_encoder_names: ClassVar[tuple[str, ...]] = ("text_encoder", "text_encoder_2")
    attention = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    entry = "x_embedder"

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        self.times = FlowTimes.of(pipeline.scheduler, logit_normal=False)
        self.usual_guidance = 3.5 if self.guided else 0.0

    @property
    def guided(self) -> bool:
        """Whether the guidance is an input of the model."""
        return bool(self.pipeline.transformer.config.guidance_embeds)

    @property
    def divisor(self) -> int:
        return self.pixels_per_latent * 2

    @property
    def native_size(self) -> int:
        return int(self.pipeline.default_sample_size) * self.pixels_per_latent

    @property
    def _tokens(self) -> int:
        return _TOKENS if self.guided else _TOKENS_UNGUIDED

    def _encode(self, captions: list[str]) -> Conditions:
        tokens, pooled, _ = self.pipeline.encode_prompt(
            captions, None, device=self.device, max_sequence_length=self._tokens
        )
        return {"encoder_hidden_states": tokens, "pooled_projections": pooled}

    def velocity(self, denoiser: nn.Module, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        inputs = {name: conditions[name].to(noisy.device, self.dtype)
                  for name in ("encoder_hidden_states", "pooled_projections")}  # fmt: skip
        count, _, height, width = noisy.shape
        seen, ids = self._seen(noisy, conditions)
        guidance = torch.full((count,), TRAINING_GUIDANCE, device=noisy.device) if self.guided else None
        found = denoiser(
            hidden_states=seen.to(self.dtype),
            timestep=times,
            guidance=guidance,
            img_ids=ids.to(self.dtype),
            txt_ids=torch.zeros(inputs["encoder_hidden_states"].shape[1], 3, device=noisy.device, dtype=self.dtype),
            **inputs,
            return_dict=False,
        )[0]
        return unpack(found[:, : height // 2 * (width // 2)], height, width)

    def _seen(self, noisy: Tensor, conditions: Conditions) -> tuple[Tensor, Tensor]:
        """The tokens of the image that the transformer reads, [n, tokens, d], and their positions, [tokens, 3]."""
        height, width = noisy.shape[-2:]
        return pack(noisy), positions(height, width, noisy.device)

    def _sample(self, prompts: list[str], generators: list[torch.Generator], **options: Any) -> Tensor:
        packed = super()._sample(prompts, generators, max_sequence_length=self._tokens, **options)
        return unpack(packed, *(options[side] // self.pixels_per_latent for side in ("height", "width")))


def pack(latents: Tensor) -> Tensor:
    """Latents [n, c, h, w] to tokens [n, h/2 · w/2, 4 c]: each 2 x 2 patch is a token.

    Example:
        >>> pack(torch.arange(16.0).view(1, 1, 4, 4))[0, 1].tolist()
        [2.0, 3.0, 6.0, 7.0]
    """
    count, channels, height, width = latents.shape
    patches = latents.reshape(count, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def positions(height: int, width: int, device: torch.device, number: int = 0) -> Tensor:
    """The positions of the tokens of :func:`pack`, float32 [h/2 · w/2, 3]: number of the image, row and column.

    Args:
        height: of the latents.
        width: of the latents.
        device: of the result.
        number: 0 for the image that is generated, 1 for an image that is edited.

    Example:
        >>> positions(4, 2, torch.device("cpu"), number=1).tolist()
        [[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]]
    """
    ids = torch.zeros(height // 2, width // 2, 3, device=device)
    ids[..., 0] = number
    ids[..., 1] = torch.arange(height // 2, device=device)[:, None]
    ids[..., 2] = torch.arange(width // 2, device=device)[None, :]
    return ids.flatten(0, 1)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Undo :func:`pack`.

    Args:
        tokens: [n, h/2 · w/2, 4 c].
        height: of the latents.
        width: of the latents.

    Returns:
        Latents [n, c, height, width].
    """
    patches = tokens.unflatten(1, (height // 2, width // 2)).unflatten(3, (-1, 2, 2))
    return patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
