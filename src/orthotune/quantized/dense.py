"""A quantized layer as a plain ``nn.Linear``."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orthotune.quantized.contract import Library


def dense(module: nn.Module, library: Library, dtype: torch.dtype, weight: Tensor | None = None) -> nn.Linear:
    """A new frozen ``nn.Linear`` on the layer's device with ``weight`` ``(out, in)``, by default the dequantized one.

    The layer itself is left as it is; its bias is copied.
    """
    weight = library.dequantize(module) if weight is None else weight
    bias, (outs, ins) = library.bias(module), weight.shape
    with torch.device("meta"):  # its random initialization is not needed
        made = nn.Linear(ins, outs, bias=bias is not None)
    made.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().to(dtype, copy=True), requires_grad=False)
    return made.train(module.training)
