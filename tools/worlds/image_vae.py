"""The autoencoder of the image world: 32 x 32 pixels to latents of 8 x 8 x 4."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from image_training import Plan, train
from orthotune.worlds.image_data import SIDE, as_input

#: Weight of the KL divergence of the latents from a normal distribution, relative to the mean error of a pixel.
_KL = 1e-4


def new_vae(seed: int) -> AutoencoderKL:
    """A new autoencoder of 1.1 million parameters."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(24, 48, 80),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIDE,
        mid_block_add_attention=False,
    )


def train_vae(vae: AutoencoderKL, images: Tensor, plan: Plan, checkpoint: Path, seed: int, batch: int = 8) -> None:
    """Train ``vae`` on uint8 [n, 3, 32, 32], and set its scaling factor so that the latents have unit variance."""

    def loss_at(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        inputs = as_input(images[torch.randint(len(images), (batch,), generator=generator)])
        posterior = vae.encode(inputs).latent_dist
        error = vae.decode(posterior.sample(generator)).sample - inputs
        return error.abs().mean() + error.square().mean() + _KL * posterior.kl().mean() / posterior.mean[0].numel()

    train(vae, loss_at, plan, checkpoint)
    some = encode(vae, images[torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:2000]])
    vae.register_to_config(scaling_factor=round(1 / some.std().item(), 4))


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Means of the latents of uint8 images, without the scaling factor: float32 [n, 4, 8, 8]."""
    return torch.cat([vae.encode(as_input(part)).latent_dist.mean for part in images.split(256)])


@torch.no_grad()
def signal_to_noise(vae: AutoencoderKL, images: Tensor) -> float:
    """Peak signal-to-noise ratio of decoded uint8 images, in decibels."""
    squared = [
        (vae.decode(vae.encode(as_input(part)).latent_dist.mean).sample.clamp(-1, 1) - as_input(part)).square()
        for part in images.split(256)
    ]
    return (10 * torch.log10(4 / torch.cat(squared).mean())).item()
