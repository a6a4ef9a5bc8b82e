"""Ideogram 4: one stream of caption and image tokens, guided by a second transformer without words (Ideogram 2026)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from orthotune.errors import DataError
from orthotune.image.data.batch import Conditions
from orthotune.image.families.transformer_family import TransformerFamily


class Ideogram4(TransformerFamily):
    """Ideogram 4, with thirteen layers of Qwen3-VL as its caption. The transformer predicts the negative velocity.

    Training times are uniform, by analogy to FLUX.2, whose latents it has. The transformer without words, which guides,
    is not trained.
    """

    name = "ideogram4"
    pipeline_class = "Ideogram4Pipeline"
    attention: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    usual_guidance = 7.0
    patch = 1  # the latents of this family are the patches

    @property
    def pixels_per_latent(self) -> int:
        return super().pixels_per_latent * int(self.pipeline.patch_size)

    def resting_parts(self) -> list[nn.Module]:
        return [*super().resting_parts(), self.pipeline.unconditional_transformer]

    def latent_shape(self, height: int, width: int, frames: int = 1) -> tuple[int, ...]:
        channels, rows, columns = super().latent_shape(height, width, frames)
        return channels * int(self.pipeline.patch_size) ** 2, rows, columns

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        vae = self.pipeline.vae
        mean, variance = (part.view(1, -1, 1, 1).to(like.device, like.dtype)
                          for part in (vae.bn.running_mean, vae.bn.running_var))  # fmt: skip
        return mean, (variance + vae.config.batch_norm_eps).sqrt()

    def _scaled(self, latents: Tensor) -> Tensor:
        side = self.pipeline.patch_size
        n, channels, height, width = latents.shape
        cells = latents.view(n, channels, height // side, side, width // side, side)
        patches = cells.permute(0, 3, 5, 1, 2, 4).reshape(n, -1, height // side, width // side)
        mean, std = self._statistics(patches)
        return (patches - mean) / std

    def _unscaled(self, latents: Tensor) -> Tensor:
        side = self.pipeline.patch_size
        mean, std = self._statistics(latents)
        n, channels, height, width = latents.shape
        cells = (latents * std + mean).view(n, side, side, channels // side**2, height, width)
        return cells.permute(0, 3, 4, 1, 5, 2).reshape(n, -1, height * side, width * side)

    def _encode(self, captions: list[str]) -> Conditions:
        try:
            found, positions, segments, kinds = self.pipeline.encode_prompt(captions, 1, 1, self.tokens, self.device)
        except ValueError as fault:
            raise DataError(
                f"captions for {self.name}", got=str(fault), needed=f"at most {self.tokens} tokens",
                do="Shorten the caption",
            ) from fault  # fmt: skip
        words = slice(0, self.tokens)  # the rest belongs to an image of one patch
        return {"words": found[:, words], "positions": positions[:, words], "segments": segments[:, words],
                "kinds": kinds[:, words]}  # fmt: skip

    def velocity(self, denoiser: nn.Module, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        inputs = self.inputs(conditions, noisy)
        words, (height, width), count = inputs["words"], noisy.shape[-2:], len(noisy)
        length, cells = words.shape[1], height * width
        # The numbers of image tokens do not depend on the words, which stand before them.
        image = zip(
            ("positions", "segments", "kinds"),
            self.pipeline._prepare_ids([0] * count, height, width, 0, noisy.device),
            strict=True,
        )
        positions, segments, kinds = (torch.cat([inputs[name], part], dim=1) for name, part in image)
        tokens = noisy.flatten(2).mT.to(self.dtype)
        found = denoiser(
            hidden_states=torch.cat([tokens.new_zeros(count, length, tokens.shape[-1]), tokens], dim=1),
            timestep=(1 - times).to(self.dtype),
            encoder_hidden_states=torch.cat([words, words.new_zeros(count, cells, words.shape[-1])], dim=1),
            position_ids=positions,
            segment_ids=segments,
            indicator=kinds,
            return_dict=False,
        )[0]
        patches: Tensor = found[:, length:].mT.unflatten(2, (height, width))
        return -patches

    def _guidance(self, scale: float) -> dict[str, Any]:
        return {"guidance_scale": scale, "guidance_schedule": None}

    def _sample(self, prompts: list[str], generators: list[torch.Generator], **options: Any) -> Tensor:
        tokens = super()._sample(prompts, generators, max_sequence_length=self.tokens, **options)
        rows, columns = (options[side] // self.pixels_per_latent for side in ("height", "width"))
        latents: Tensor = tokens.mT.unflatten(2, (rows, columns))
        return latents
