"""The autoencoder of the image world: 32 x 32 pixels to latents of 8 x 8 x 4, a quarter of each side."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from image_training import Plan, train
from orthotune.worlds.image_data import SIDE, as_input

#: Of the pull of the latents towards a normal distribution, in units of the mean error of a pixel.
_KL = 1e-4


def new_vae(seed: int) -> AutoencoderKL:
    """A fresh autoencoder of 1.1 million parameters."""
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


def train_vae(vae: AutoencoderKL, pictures: Tensor, plan: Plan, checkpoint: Path, seed: int, batch: int = 8) -> None:
    """Train ``vae`` on uint8 [n, 3, 32, 32]; its scale then gives the latents unit variance."""

    def loss_at(step: int) -> Tensor:
        draw = torch.Generator().manual_seed(seed * 1_000_003 + step)
        inputs = as_input(pictures[torch.randint(len(pictures), (batch,), generator=draw)])
        posterior = vae.encode(inputs).latent_dist
        error = vae.decode(posterior.sample(draw)).sample - inputs
        return error.abs().mean() + error.square().mean() + _KL * posterior.kl().mean() / posterior.mean[0].numel()

    train(vae, loss_at, plan, checkpoint)
    some = encode(vae, pictures[torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))[:2000]])
    vae.register_to_config(scaling_factor=round(1 / some.std().item(), 4))


@torch.no_grad()
def encode(vae: AutoencoderKL, pictures: Tensor) -> Tensor:
    """Means of the latents of uint8 pictures, not yet scaled: float32 [n, 4, 8, 8]."""
    return torch.cat([vae.encode(as_input(part)).latent_dist.mean for part in pictures.split(256)])


@torch.no_grad()
def signal_to_noise(vae: AutoencoderKL, pictures: Tensor) -> float:
    """Peak signal-to-noise ratio of decoded uint8 pictures, in decibels."""
    squared = [
        (vae.decode(vae.encode(as_input(part)).latent_dist.mean).sample.clamp(-1, 1) - as_input(part)).square()
        for part in pictures.split(256)
    ]
    return (10 * torch.log10(4 / torch.cat(squared).mean())).item()
