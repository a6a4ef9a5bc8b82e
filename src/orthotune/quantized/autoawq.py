"""AWQ layers of AutoAWQ: four-bit codes with a scale and a zero point for every group (arXiv 2306.00978)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from orthotune.quantized import affine
from orthotune.quantized.contract import Library


class AutoAwq(Library):
    """``WQLinear_GEMM``. Its own backward needs a GPU kernel and, in evaluation, does not exist."""

    name = "autoawq"
    classes = ("awq.modules.linear.gemm.WQLinear_GEMM",)
    no_merge = None

    def mode(self, module: Any) -> str:
        return f"{module.w_bit} bit, groups of {module.group_size}"

    def dequantize(self, module: Any) -> Tensor:
        from awq.utils.packing_utils import dequantize_gemm

        weight = dequantize_gemm(module.qweight, module.qzeros, module.scales, module.w_bit, module.group_size)
        return weight.detach().T.float().contiguous()

    def requantize(self, module: Any, weight: Tensor) -> None:
        codes, zeros, scales = affine.fit(weight, *_grid(module))
        # The library's packing rounds weight / scale itself; given the values of these codes, the result is the same
        # codes.
        spread = (codes - zeros.repeat_interleave(module.group_size, 1)).float()
        spread *= scales.float().repeat_interleave(module.group_size, 1)
        with torch.device("meta"):
            full = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        full.weight = nn.Parameter(spread, requires_grad=False)
        scales, zeros = scales.T.contiguous(), zeros.T.contiguous()
        made = type(module).from_linear(full, module.w_bit, module.group_size, False, scales, zeros)
        for name in ("qweight", "qzeros", "scales"):
            setattr(module, name, getattr(made, name).to(weight.device))

    def rounding(self, module: Any, weight: Tensor) -> Tensor:
        return affine.rounding(weight, *_grid(module))


def _grid(module: Any) -> tuple[int, int, torch.dtype]:
    return module.w_bit, module.group_size, torch.float16
