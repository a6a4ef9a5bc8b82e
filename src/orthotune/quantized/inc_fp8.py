"""Intel Neural Compressor's fp8 layers that quantize and dequantize around a product in a wider dtype."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from orthotune.quantized.contract import Library, Snapshot
from orthotune.quantized.rounding import floating


class IncFp8(Library):
    """``PatchedLinear`` in ``use_qdq`` mode; the weight is stored ``(in, out)``.

    Its own backward rounds the gradient to fp8, where most of it becomes zero, so the generic one is used.
    """

    name = "inc fp8"
    classes = ("neural_compressor.torch.algorithms.fp8_quant._quant_common.helper_modules.PatchedLinear",)

    def claims(self, module: Any) -> bool:
        """Layers that can dequantize their weight; those that run Gaudi's own product have no such part."""
        return super().claims(module) and isinstance(getattr(module, "dequant_weights", None), nn.Module)

    def mode(self, module: Any) -> str:
        return str(module.weight.dtype).removeprefix("torch.")

    def features(self, module: Any) -> tuple[int, int]:
        width, out = module.weight.shape
        return out, width

    def prepare(self, module: Any) -> None:
        """The library leaves its 8-bit weight trainable, which no backward can serve."""
        module.weight.requires_grad_(False)

    def cannot_merge(self, module: Any) -> str | None:
        one = torch.as_tensor(module.dequant_weights.scale).numel() == 1
        return None if one else "scales that are not one for the entire weight"

    @torch.no_grad()
    def dequantize(self, module: Any) -> Tensor:
        weight: Tensor = module.dequant_weights(module.weight)
        return weight.T.float().contiguous()

    def requantize(self, module: Any, weight: Tensor) -> None:
        part, largest = module.dequant_weights, float(module.dequant_weights.quant_max)
        fitted = float(weight.abs().amax() / largest) or 1.0
        if isinstance(part.scale, nn.Parameter):
            part.scale = nn.Parameter(torch.full_like(part.scale, fitted), False)
        else:
            part.scale = torch.full_like(part.scale, fitted) if isinstance(part.scale, Tensor) else fitted
        # Divided by the scale as it is stored: a tensor's dtype may have rounded it.
        codes = (weight.T / float(part.scale)).clamp(-largest, largest).to(module.weight.dtype)
        module.weight = nn.Parameter(codes.contiguous(), requires_grad=False)

    def rounding(self, module: Any, weight: Tensor) -> Tensor:
        wide = torch.finfo(module.dequant_weights.hp_dtype)
        return floating(weight, module.weight.dtype) + weight.abs() * wide.eps

    def snapshot(self, module: Any) -> Snapshot:
        kept = super().snapshot(module)
        kept.attributes["scale"] = module.dequant_weights.scale
        return kept

    def restore(self, module: Any, snapshot: Snapshot) -> None:
        super().restore(module, Snapshot(snapshot.parameters, snapshot.buffers, {}))
        module.dequant_weights.scale = snapshot.attributes["scale"]
