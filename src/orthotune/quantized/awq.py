"""AWQ layers of gptqmodel: integer codes with a scale and a zero point for every group (arXiv 2306.00978)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from orthotune.quantized import affine
from orthotune.quantized.contract import Snapshot
from orthotune.quantized.gptqmodel_kernels import ROOM, GptqmodelLibrary, kernel_dtype, packed


class Awq(GptqmodelLibrary):
    """Every AWQ kernel of gptqmodel. Those that hold AWQ's own order of codes (``gemm``) can be merged into."""

    name = "awq"
    classes = (ROOM + "AWQuantLinear",)
    understood = (
        ROOM + "torch_awq.AwqTorchLinear",
        ROOM + "torch_aten_kernel_awq.TorchAtenAwqLinear",
        ROOM + "gemm_awq.AwqGEMMLinear",
        ROOM + "gemm_awq_triton.AwqGEMMTritonLinear",
    )

    def cannot_merge(self, module: Any) -> str | None:
        return None if self.understands(module) else f"a kernel, {type(module).__name__}, with its own order of codes"

    def read(self, module: Any) -> Tensor:
        from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

        weight: Tensor = dequantize_gemm(module.qweight, module.qzeros, module.scales, module.bits, module.group_size)
        return weight

    def requantize(self, module: Any, weight: Tensor) -> None:
        from gptqmodel.quantization.awq.utils.packing_utils import pack_awq

        codes, zeros, scales = affine.fit(weight, *_grid(module))
        qweight, qzeros = pack_awq(codes.T.contiguous(), zeros.T.contiguous(), module.bits)
        module.qweight, module.qzeros, module.scales = qweight, qzeros, scales.T.contiguous()
        if packed(module):
            module.linear_mode = "train"

    def rounding(self, module: Any, weight: Tensor) -> Tensor:
        return affine.rounding(weight, *_grid(module))

    def snapshot(self, module: Any) -> Snapshot:
        kept = super().snapshot(module)
        if hasattr(module, "linear_mode"):
            kept.attributes["linear_mode"] = module.linear_mode
        return kept


def _grid(module: Any) -> tuple[int, int, torch.dtype]:
    return module.bits, module.group_size, kernel_dtype(module)
