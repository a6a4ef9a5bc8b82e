"""optimum-quanto's ``QLinear``: 8-bit rows, 4- and 2-bit groups, or 8-bit floats."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from orthotune.quantized.contract import Library
from orthotune.quantized.rounding import floating, uniform


class Quanto(Library):
    """A ``nn.Linear`` whose weight is a tensor class of its own: a write through ``weight.data`` would be lost."""

    name = "optimum-quanto"
    classes = ("optimum.quanto.nn.qlinear.QLinear",)
    no_merge = None

    def mode(self, module: Any) -> str:
        return str(module.weight_qtype.name)

    def dequantize(self, module: Any) -> Tensor:
        weight = module.qweight
        weight = weight.dequantize() if hasattr(weight, "dequantize") else weight
        return weight.detach().to(torch.float32, copy=True)

    def requantize(self, module: Any, weight: Tensor) -> None:
        frozen, dtype = module.frozen, module.weight.dtype
        module.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
        if frozen:
            module.freeze()
        module.weight.requires_grad_(False)  # freeze() makes a trainable one

    def rounding(self, module: Any, weight: Tensor) -> Tensor:
        kind = module.weight_qtype
        if kind.dtype.is_floating_point:
            return floating(weight, kind.dtype, weight.shape[1])
        return uniform(weight, kind.bits, module.weight_group_size, symmetric=kind.bits == 8)
