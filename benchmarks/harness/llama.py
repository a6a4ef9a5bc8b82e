"""A stack of Llama blocks with random weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from harness.cells import Cell

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
HEAD = 64


def intermediate(hidden: int) -> int:
    """Llama-2-7B's ratio, to a multiple of 128, so that every measured block size divides every projection.

    Example:
        >>> intermediate(4096), intermediate(1024)
        (11008, 2816)
    """
    return max(1, round(hidden * 2.6875 / 128)) * 128


def build(cell: Cell) -> tuple[nn.Module, Tensor, Callable[[nn.Module, Tensor], Tensor]]:
    """The model, hidden states ``(1, tokens, hidden)`` and the call; no embedding, no head over a vocabulary."""
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=8,
        hidden_size=cell.hidden,
        intermediate_size=intermediate(cell.hidden),
        num_hidden_layers=cell.layers,
        num_attention_heads=max(1, cell.hidden // HEAD),
        max_position_embeddings=max(cell.tokens, 8),
    )
    return LlamaModel(config), torch.randn(1, cell.tokens, cell.hidden), _call


def _call(model: nn.Module, x: Tensor) -> Tensor:
    output: Tensor = model(inputs_embeds=x, use_cache=False).last_hidden_state
    return output
