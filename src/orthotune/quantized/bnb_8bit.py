"""bitsandbytes ``Linear8bitLt``: int8 rows with one scale each (LLM.int8(), arXiv 2208.07339)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from orthotune.errors import UnsupportedLayerError
from orthotune.quantized.contract import Library
from orthotune.quantized.rounding import uniform


class Bnb8bit(Library):
    """``weight`` int8 ``(out, in)``; the scales ``SCB`` ``(out,)`` lie in the weight, then in the layer's state."""

    name = "bitsandbytes 8-bit"
    classes = ("bitsandbytes.nn.modules.Linear8bitLt",)
    replaced = ("state",)
    no_merge = None

    def mode(self, module: Any) -> str:
        return "int8"

    def dequantize(self, module: Any) -> Tensor:
        if module.weight.dtype != torch.int8:
            raise UnsupportedLayerError(
                f"a {type(module).__name__} whose weight is still {module.weight.dtype}",
                needed="int8 codes",
                do="Move the model to its device, which quantizes it, and build it with has_fp16_weights=False",
            )
        scales = module.weight.SCB if module.state.SCB is None else module.state.SCB
        return module.weight.data.float() * (scales.float() / 127)[:, None]

    def requantize(self, module: Any, weight: Tensor) -> None:
        from bitsandbytes.nn import Int8Params

        device = module.weight.device
        # The library quantizes on the way from the CPU to the device.
        module.weight = Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False).to(device)
        module.state = copy.copy(module.state)  # the old one belongs to the snapshot
        module.state.reset_grads()

    def rounding(self, module: Any, weight: Tensor) -> Tensor:
        return uniform(weight, bits=8, symmetric=True)
