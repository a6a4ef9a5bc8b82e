"""Small models for what the layers do inside one."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from orthotune import OFTConfig, get_peft_model
from orthotune.layers.parametrization.rotation import Rotation
from tests.support.contract_cases import randomize, seeded
from tests.support.contract_layers import Net

TARGETS = ["embed", "conv", "mix", "attention", "head"]


class Everything(nn.Module):
    """One layer of most kinds in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mix = nn.Linear(8, 12)
        self.head = nn.Linear(12, 8, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.conv(self.embed(tokens).mT).mT
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.mix(x).tanh())


def tokens() -> Tensor:
    """A batch for :class:`Everything`."""
    return torch.arange(15).view(3, 5) * 7 % 11


def everything(*, trained: bool = True, **fields: Any) -> PeftModel:
    """:class:`Everything` with an adapter on each layer."""
    with seeded(1):
        model = get_peft_model(Everything(), OFTConfig(**{"oft_block_size": 4, "target_modules": TARGETS} | fields))
    return (randomize(model) if trained else model).eval()


def linear(*, trained: bool = True, base: nn.Module | None = None, **fields: Any) -> PeftModel:
    """One rotated ``nn.Linear(12, 20)``, or ``base``."""
    with seeded(1):
        net = Net(base or nn.Linear(12, 20))
    model = get_peft_model(net, OFTConfig(**{"oft_block_size": 4, "target_modules": ["layer"]} | fields))
    return (randomize(model) if trained else model).eval()


def rotations(model: nn.Module) -> list[Rotation]:
    """Every rotation of a model."""
    return [module for module in model.modules() if isinstance(module, Rotation)]
