"""Rotations stay float32 on a quantized base, whatever a trainer does to trainable parameters."""

from __future__ import annotations

import torch
from torch import nn

from orthotune.layers.quantized_linear import QuantizedLinear


def keep_float32(model: nn.Module) -> int:
    """Give adapter parameters on quantized layers float32 back, and return how many there were.

    TRL stores everything that is trained on a base loaded in 4 or 8 bits in bfloat16, as QLoRA's paper did. A stored
    number of a rotation is near 0.1, where bfloat16 has steps of 4e-4: most updates would be rounded away.
    """
    changed = 0
    for module in model.modules():
        if isinstance(module, QuantizedLinear):
            for name in module.oft_settings:
                for parameter in module.stored(name):
                    if parameter.requires_grad and parameter.dtype in (torch.bfloat16, torch.float16):
                        parameter.data = parameter.data.float()
                        changed += 1
    return changed
