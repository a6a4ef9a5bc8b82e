"""A UNet of Stable Diffusion's shape with random weights: its first levels, with fewer layers in each."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from harness.cells import Cell

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
CONVOLUTIONS = ["conv1", "conv2", "conv_shortcut"]
TEXT_TOKENS, TEXT_WIDTH = 77, 768


def build(cell: Cell) -> tuple[nn.Module, Tensor, Callable[[nn.Module, Tensor], Tensor]]:
    """The model, a latent image ``(1, 4, side, side)`` of ``tokens`` pixels and the call with a text of 77 tokens."""
    from diffusers import UNet2DConditionModel

    side, crossed = math.isqrt(cell.tokens), max(1, cell.layers - 1)
    plain = cell.layers - crossed
    model = UNet2DConditionModel(
        sample_size=side,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=[cell.hidden * min(2**level, 4) for level in range(cell.layers)],
        down_block_types=["CrossAttnDownBlock2D"] * crossed + ["DownBlock2D"] * plain,
        up_block_types=["UpBlock2D"] * plain + ["CrossAttnUpBlock2D"] * crossed,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,
    )
    text = torch.randn(1, TEXT_TOKENS, TEXT_WIDTH)

    def call(model: nn.Module, x: Tensor) -> Tensor:
        output: Tensor = model(x, 500, encoder_hidden_states=text.to(x)).sample
        return output

    return model, torch.randn(1, 4, side, side), call
