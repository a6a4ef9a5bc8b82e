"""Intel Neural Compressor's weight-only layers: integer codes, or codes of a table, with a scale for every group."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from orthotune.quantized import affine
from orthotune.quantized.contract import Library, Snapshot


class IncWeightOnly(Library):
    """``INCWeightOnlyLinear``. From its first forward on it keeps the entire dequantized weight as well."""

    name = "inc weight-only"
    classes = ("neural_compressor.torch.algorithms.weight_only.modules.INCWeightOnlyLinear",)

    def mode(self, module: Any) -> str:
        return f"{module.bits} bit {module.dtype}, groups of {module.group_size}"

    def cannot_merge(self, module: Any) -> str | None:
        if "int" not in module.dtype:
            return f"codes of the table {module.dtype}, which the library does not fit to a weight"
        runs = torch.arange(module.in_features) // module.group_size
        if module.g_idx is not None and not torch.equal(module.g_idx.cpu().long(), runs):
            return "groups of inputs that were reordered by calibration data"
        return None

    @torch.no_grad()
    def dequantize(self, module: Any) -> Tensor:
        weight: Tensor = module.recover()
        return weight.float()

    def requantize(self, module: Any, weight: Tensor) -> None:
        codes, zeros, scales = affine.fit(weight, *_grid(module))
        # The library's packing copies into the present buffers, which a snapshot may hold.
        for name in {"qweight", "qzeros", "scales"} & set(module._buffers):
            module._buffers[name] = torch.zeros_like(module._buffers[name])
        if "qzeros" in module._buffers:
            module.pack(codes, scales, zeros, None)
        else:
            module.pack(codes - 2 ** (module.bits - 1), scales, None, None)
        if "weight" in module.__dict__:
            module.weight = module.recover().to(module.weight)

    def rounding(self, module: Any, weight: Tensor) -> Tensor:
        return affine.rounding(weight, *_grid(module))

    def snapshot(self, module: Any) -> Snapshot:
        kept = super().snapshot(module)
        kept.attributes["weight"] = module.__dict__.get("weight")
        return kept

    def restore(self, module: Any, snapshot: Snapshot) -> None:
        super().restore(module, Snapshot(snapshot.parameters, snapshot.buffers, {}))
        module.__dict__.pop("weight", None)
        if snapshot.attributes["weight"] is not None:
            module.__dict__["weight"] = snapshot.attributes["weight"]


def _grid(module: Any) -> tuple[int, int, torch.dtype, bool]:
    # Eight-bit codes stay around the middle: the library subtracts the zero point in eight bits, which overflows.
    return module.bits, module.group_size, module.float_type, "qzeros" not in module._buffers or module.bits == 8
