"""The smallest library that fulfils the contract, so that what the real ones share runs where none is installed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from orthotune.quantized.contract import Library
from orthotune.quantized.rounding import uniform


class RoundedLinear(nn.Module):
    """Codes from -127 to 127 and a scale for each row; the forward has no backward, and there is no ``weight``."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.out_features, self.in_features = linear.weight.shape
        self.scale = nn.Parameter(torch.empty(0), requires_grad=False)
        self.codes = nn.Parameter(torch.empty(0, dtype=torch.int8), requires_grad=False)
        self.bias = linear.bias
        self.calls = 0
        RoundedLibrary().requantize(self, linear.weight.detach())

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        y = x @ (self.codes.to(x.dtype) * self.scale.to(x.dtype)).T
        return y if self.bias is None else y + self.bias.to(x.dtype)


class InferenceLinear(RoundedLinear):
    """A kernel that runs in inference mode, whose tensors autograd does not take as they are."""

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class RoundedLibrary(Library):
    name = "toy"
    classes = ("tests.quantized.toy.RoundedLinear",)
    no_merge = None

    def mode(self, module: Any) -> str:
        return "rounded"

    def dequantize(self, module: Any) -> Tensor:
        return module.codes.float() * module.scale

    def requantize(self, module: Any, weight: Tensor) -> None:
        scale = weight.abs().amax(1, keepdim=True) / 127
        module.scale = nn.Parameter(scale, requires_grad=False)
        module.codes = nn.Parameter((weight / scale).round().to(torch.int8), requires_grad=False)

    def rounding(self, module: Any, weight: Tensor) -> Tensor:
        return uniform(weight, bits=8, symmetric=True)


class FixedLibrary(RoundedLibrary):
    """The same, without a way back."""

    classes = ("tests.quantized.toy.FixedLinear",)
    no_merge = "numbers that nobody can round again"


class FixedLinear(RoundedLinear):
    """Claimed by :class:`FixedLibrary`, which stands first in the registry."""


#: the more special one first, as in the registry of the package
TOYS: list[Library] = [FixedLibrary(), RoundedLibrary()]
