"""HiDream-I1: a sparse transformer that reads T5 once and one layer of Llama in each block (HiDream.ai 2025)."""

from __future__ import annotations

import math
from types import MethodType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from orthotune.errors import RecipeError
from orthotune.image.data.batch import Conditions
from orthotune.image.families.transformer_family import TransformerFamily


class HiDream(TransformerFamily):
    """HiDream-I1 (full, dev, fast). Times are uniform, as in diffusers' example. It predicts the negative velocity.

    The experts of its feed-forward layers compute without a gradient in diffusers, except in a training mode whose
    output has another layout. Here they have a gradient, and one layout, in both modes.
    """

    name = "hidream"
    pipeline_class = "HiDreamImagePipeline"
    text_encoder_names: ClassVar[tuple[str, ...]] = (
        "text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4",
    )  # fmt: skip
    attention: ClassVar[tuple[str, ...]] = (
        "to_q", "to_k", "to_v", "to_out", "to_q_t", "to_k_t", "to_v_t", "to_out_t",
    )  # fmt: skip
    usual_guidance = 5.0
    tokens = 128

    def __init__(self, pipeline: Any) -> None:
        super().__init__(pipeline)
        pipeline.transformer.register_to_config(force_inference_output=True)
        pipeline.transformer.patchify = MethodType(_patchify, pipeline.transformer)
        for module in pipeline.transformer.modules():
            if hasattr(module, "_force_inference_output"):
                module._force_inference_output = True
            if hasattr(module, "moe_infer"):
                module.moe_infer = MethodType(_experts, module)

    def check_size(self, height: int, width: int) -> None:
        super().check_size(height, width)
        most = self.pipeline.transformer.max_seq * self.divisor**2
        if height * width > most:
            side = math.isqrt(most)
            raise RecipeError(
                f"images of {height} x {width} pixels for {self.name}", needed=f"at most {side} x {side}, or as many",
                do="Take a smaller resolution",
            )  # fmt: skip

    def _encode(self, captions: list[str]) -> Conditions:
        t5, _, llama, _, pooled, _ = self.pipeline.encode_prompt(
            captions, do_classifier_free_guidance=False, max_sequence_length=self.tokens, device=self.device
        )
        return {
            "encoder_hidden_states_t5": t5, "encoder_hidden_states_llama3": llama.transpose(0, 1),
            "pooled_embeds": pooled,
        }  # fmt: skip

    def velocity(self, denoiser: nn.Module, noisy: Tensor, times: Tensor, conditions: Conditions) -> Tensor:
        inputs = self.inputs(conditions, noisy)
        llama = inputs.pop("encoder_hidden_states_llama3").transpose(0, 1)  # layers come first
        found: Tensor = denoiser(
            hidden_states=noisy.to(self.dtype),
            timesteps=times * self.pipeline.scheduler.config.num_train_timesteps,
            encoder_hidden_states_llama3=llama,
            **inputs,
            return_dict=False,
        )[0]
        return -found

    def _sample(self, prompts: list[str], generators: list[torch.Generator], **options: Any) -> Tensor:
        # The pipeline brings each size to the area of its default, which is therefore the area that is asked for; a
        # little more, so that rounding takes no side one step down.
        side, usual = math.sqrt(options["height"] * options["width"]), self.pipeline.default_sample_size
        self.pipeline.default_sample_size = side / self.pixels_per_latent * (1 + 1e-9)
        try:
            return super()._sample(prompts, generators, max_sequence_length=self.tokens, **options)
        finally:
            self.pipeline.default_sample_size = usual


def _patchify(transformer: Any, latents: Tensor) -> tuple[Tensor, Tensor | None, list[tuple[int, int]], Tensor]:
    """As in diffusers, with the sizes as numbers: as a tensor they would be fetched from the device for each image."""
    patches, mask, _, places = type(transformer).patchify(transformer, latents)
    side = transformer.config.patch_size
    return patches, mask, [(latents.shape[-2] // side, latents.shape[-1] // side)] * len(latents), places


def _experts(layer: Any, rows: Tensor, chosen: Tensor, shares: Tensor) -> Tensor:
    """The sum of the chosen experts of each token, with a gradient.

    Args:
        layer: with ``experts``, of which ``num_activated_experts`` are chosen for each token.
        rows: tokens ``[n, d]``.
        chosen: numbers of experts ``[n * num_activated_experts]``, those of a token beside each other.
        shares: weights of the experts in the order of ``chosen``, ``[n * num_activated_experts, 1]``.

    Returns:
        ``[n, d]``.
    """
    order = chosen.argsort(stable=True)
    tokens = order // layer.num_activated_experts
    experts = len(layer.experts)
    if _has_values(chosen):
        counts = chosen.bincount(minlength=experts).tolist()
    else:  # an estimate of memory, on tensors without values: the experts have equal shares
        counts = [len(chosen) * (n + 1) // experts - len(chosen) * n // experts for n in range(experts)]
    total = torch.zeros_like(rows)
    parts = zip(layer.experts, tokens.split(counts), shares[order].split(counts), strict=True)
    for expert, mine, share in parts:
        if len(mine):
            found = expert(rows[mine]) * share
            total = total.to(found.dtype).index_add(0, mine, found)
    return total


def _has_values(tensor: Tensor) -> bool:
    from torch._subclasses.fake_tensor import FakeTensor

    return not (tensor.is_meta or isinstance(tensor, FakeTensor))
