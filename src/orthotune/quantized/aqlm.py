"""AQLM's ``QuantizedLinear``: every group of weights is a sum of learned codebook entries (arXiv 2401.06118)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from orthotune.quantized.contract import Library


class AQLM(Library):
    """``codes`` ``(out_groups, in_groups, codebooks)``, ``codebooks`` and ``scales``; there is no ``weight``."""

    name = "aqlm"
    classes = ("aqlm.inference.QuantizedLinear",)
    no_merge = "codebooks that were learned for the old weight; the package cannot find codes for a new one"

    def mode(self, module: Any) -> str:
        return f"{module.num_codebooks}x{module.nbits_per_codebook}"

    def device(self, module: Any) -> torch.device:
        return module.codes.device

    def own_forward(self, module: Any) -> bool:
        # Its CPU kernel for codebooks of 256 entries has a race: several threads add to the same elements.
        return module.codes.device.type != "cpu" or module.codebook_size != 256

    def dequantize(self, module: Any) -> Tensor:
        from aqlm.utils import _dequantize_weight, unpack_int_data

        codes = module.codes.data
        if _permuted(module):
            codes = codes.permute(1, 0, 2)
        codes = unpack_int_data(codes.contiguous(), module.nbits_per_codebook)
        return _dequantize_weight(codes, module.codebooks.data.float(), module.scales.data.float()).contiguous()


def _permuted(module: Any) -> bool:
    """Whether a first forward on the CPU has exchanged the codes' two axes in place."""
    outs, ins = module.out_features // module.out_group_size, module.in_features // module.in_group_size
    if outs != ins:
        return bool(module.codes.shape[0] != outs)
    ran = module.gemv_op is not None
    return bool(ran and module.codebook_size == 256 and module.codes.device.type == "cpu")
