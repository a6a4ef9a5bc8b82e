"""Tiny UNets and text encoders with the structure of Stable Diffusion 1.5 and XL, made from configs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def unet(kind: str, seed: int = 0) -> Any:
    """A UNet like that of ``sd15`` or ``sdxl``: the blocks are the same, they are only narrow."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    if kind == "sd15":
        return UNet2DConditionModel(
            sample_size=8, block_out_channels=(8, 16, 16, 16), layers_per_block=2, norm_num_groups=4,
            cross_attention_dim=12, attention_head_dim=2,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        )  # fmt: skip
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16, 16), layers_per_block=2, norm_num_groups=4, cross_attention_dim=12,
        attention_head_dim=(2, 4, 4), use_linear_projection=True, transformer_layers_per_block=(1, 2, 3),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), addition_embed_type="text_time",
        addition_time_embed_dim=4, projection_class_embeddings_input_dim=32,
    )  # fmt: skip


def text_encoder(projection: bool = False, seed: int = 0) -> Any:
    """A CLIP text model of two layers, with the projection that SDXL's second one has if asked for."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=50, hidden_size=12, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=10, projection_dim=8, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def pipeline(seed: int = 0) -> Any:
    """A Stable Diffusion pipeline around the ``sd15`` parts."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline

    torch.manual_seed(seed)
    vae = AutoencoderKL(
        block_out_channels=(4,), norm_num_groups=2, down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",), latent_channels=4,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=vae, text_encoder=text_encoder(seed=seed), tokenizer=None, unet=unet("sd15", seed),
        scheduler=DDIMScheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def weights(model: nn.Module) -> list[str]:
    """Names of the modules that have a weight."""
    return [name for name, module in model.named_modules() if isinstance(getattr(module, "weight", None), nn.Parameter)]
