"""Train the denoiser and the text encoder of the image world together, on captioned scenes.

The noise schedule is that of Stable Diffusion 1.5: 1000 steps, ``scaled_linear`` from 0.00085 to 0.012, epsilon
prediction. The loss is weighted by ``min(SNR, 5) / SNR`` (Hang et al. 2023, Min-SNR, section 3.4): the digit is decided
at high noise, but without weights most of the loss comes from low noise.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from image_tokenizer import LENGTH
from image_training import Plan, train

_SNR_CEILING = 5.0


def new_unet(seed: int) -> UNet2DConditionModel:
    """A new denoiser of 3.4 million parameters with cross-attention at 8 x 8 and 4 x 4."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        block_out_channels=(64, 112),
        layers_per_block=1,
        cross_attention_dim=64,
        # diffusers uses this value as the number of heads, as in the config of Stable Diffusion 1.5
        attention_head_dim=4,
        norm_num_groups=16,
    )


def new_text_encoder(tokenizer: CLIPTokenizer, seed: int) -> CLIPTextModel:
    """A new CLIP text encoder of two layers."""
    torch.manual_seed(seed)
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=256,
            projection_dim=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    # With the usual 0.02 all tokens begin almost equal, and training takes thousands of additional steps.
    torch.nn.init.normal_(encoder.get_input_embeddings().weight, std=0.3)
    return encoder


def new_scheduler() -> DDIMScheduler:
    """A scheduler with the settings of Stable Diffusion 1.5."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def token_ids(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Tokens of texts, int64 [n, LENGTH], padded as in the pipeline."""
    return tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt").input_ids


def train_denoiser(
    unet: UNet2DConditionModel,
    encoder: CLIPTextModel,
    latents: Tensor,
    ids: Tensor,
    plan: Plan,
    checkpoint: Path,
    seed: int,
    batch: int = 32,
) -> None:
    """Train both networks on scaled latents [n, 4, 8, 8] and caption tokens ``ids`` [n, LENGTH]."""
    scheduler = new_scheduler()
    ratio = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    weight = ratio.clamp(max=_SNR_CEILING) / ratio

    def loss_at(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        rows = torch.randint(len(latents), (batch,), generator=generator)
        times = torch.randint(1000, (batch,), generator=generator)
        clean = latents[rows]
        noise = torch.randn(clean.shape, generator=generator)
        states = encoder(ids[rows]).last_hidden_state
        guess = unet(scheduler.add_noise(clean, noise, times), times, states).sample
        return (weight[times] * (guess - noise).square().mean((1, 2, 3))).mean()

    train(nn.ModuleDict({"unet": unet, "encoder": encoder}), loss_at, plan, checkpoint)


def as_pipeline(
    unet: UNet2DConditionModel, encoder: CLIPTextModel, vae: AutoencoderKL, tokenizer: CLIPTokenizer
) -> StableDiffusionPipeline:
    """Combine the networks into a pipeline, without a safety checker, because it only generates digits."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
