"""Z-Image: one stream of caption and image tokens, whose time runs from noise to the image (Tongyi 2025)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from orthotune.image.data.batch import Conditions
from orthotune.image.families.transformer_family import TransformerFamily, padded


class ZImage(TransformerFamily):
    """Z-Image and Z-Image Turbo, with Qwen3 as text encoder. The transformer predicts the negative velocity.

    Turbo is distilled: what it learns away from its few steps costs its speed; train the base model, or use few steps.
    """

    name = "z-image"
    pipeline_class = "ZImagePipeline"
    attention: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    usual_guidance = 5.0

    def _encode(self, captions: list[str]) -> Conditions:
        # The pipeline writes its template into the list that it is given.
        rows, _ = self.pipeline.encode_prompt(list(captions), self.device, do_classifier_free_guidance=False)
        tokens, mask = padded(rows, self.tokens)
        return {"tokens": tokens, "mask": mask}

    def velocity(self, denoiser: nn.Module, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        inputs = self.inputs(conditions, noisy)
        captions = [row[mask] for row, mask in zip(inputs["tokens"], inputs["mask"], strict=True)]
        found = denoiser(list(noisy.to(self.dtype).unsqueeze(2).unbind()), 1 - times, captions, return_dict=False)[0]
        return -torch.stack(list(found)).squeeze(2).float()
