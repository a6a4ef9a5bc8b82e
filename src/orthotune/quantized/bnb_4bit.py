"""bitsandbytes ``Linear4bit``: nf4 or fp4 codes in blocks, their scales quantized or not (QLoRA, arXiv 2305.14314)."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from orthotune.errors import UnsupportedLayerError
from orthotune.quantized.contract import Library
from orthotune.quantized.rounding import codebook


class Bnb4bit(Library):
    """Two codes in a byte; ``quant_state`` holds a scale for every ``blocksize`` elements."""

    name = "bitsandbytes 4-bit"
    classes = ("bitsandbytes.nn.modules.Linear4bit",)
    replaced = ("quant_state",)
    no_merge = None

    def mode(self, module: Any) -> str:
        weight = module.weight
        return f"{weight.quant_type}, double quantization" if weight.compress_statistics else str(weight.quant_type)

    def prepare(self, module: Any) -> None:
        # On CPUs with AVX512-BF16 the first evaluation would pack the weight into a form without a backward, in which
        # dequantizing gives other values.
        module.support_avx512bf16_for_cpu = False

    def own_forward(self, module: Any) -> bool:
        # On a CPU (0.50.2) a block of scales that goes over the end of a row is read wrong: errors of 0.2 to 0.4.
        return module.weight.device.type != "cpu" or module.in_features % _state(module).blocksize == 0

    def own_backward(self, module: Any) -> bool:
        return not _packed(module)

    def dequantize(self, module: Any) -> Tensor:
        from bitsandbytes.functional import dequantize_4bit

        if _packed(module):
            module.state_dict()  # unpacks in place
        state = copy.copy(_state(module))
        shape, state.shape = state.shape, torch.Size((1, state.shape.numel()))  # one row: see own_forward
        return dequantize_4bit(module.weight.data, state).to(torch.float32, copy=True).view(shape)

    def requantize(self, module: Any, weight: Tensor) -> None:
        from bitsandbytes.nn import Params4bit

        old, state = module.weight, _state(module)
        module.weight = Params4bit(
            weight.to(state.dtype),
            requires_grad=False,
            quant_type=old.quant_type,
            compress_statistics=old.compress_statistics,
            blocksize=old.blocksize,
            quant_storage=old.quant_storage,
            module=module,
        ).to(old.device)

    def rounding(self, module: Any, weight: Tensor) -> Tensor:
        return codebook(weight, _state(module).code, _state(module).blocksize)


def _state(module: Any) -> Any:
    state = getattr(module.weight, "quant_state", None) or module.quant_state
    if state is None:
        raise UnsupportedLayerError(
            f"a {type(module).__name__} whose weight is still {module.weight.dtype}",
            needed="4-bit codes",
            do="Move the model to its device, which quantizes it",
        )
    return state


def _packed(module: Any) -> bool:
    return bool(getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False))
