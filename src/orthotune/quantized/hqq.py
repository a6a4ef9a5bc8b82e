"""HQQ's ``HQQLinear`` (half-quadratic quantization): 1 to 8 bits, a scale and a zero for every group."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from orthotune.quantized.contract import Library, Snapshot
from orthotune.quantized.rounding import uniform


class HQQ(Library):
    """``W_q`` packed codes and ``meta`` with their scales and zeros; there is no ``weight``."""

    name = "hqq"
    classes = ("hqq.core.quantize.HQQLinear",)
    no_merge = None

    def mode(self, module: Any) -> str:
        return f"{module.meta['nbits']} bit"

    def device(self, module: Any) -> torch.device:
        return module.W_q.device

    def dequantize(self, module: Any) -> Tensor:
        return module.dequantize().detach().to(torch.float32, copy=True)

    def requantize(self, module: Any, weight: Tensor) -> None:
        config = copy.deepcopy(module.quant_config)
        new = type(module)(
            None,
            {**config, "offload_meta": module.offload_meta},
            compute_dtype=module.compute_dtype,
            device=str(module.W_q.device),
        )
        new.quantize(weight.contiguous(), **config)
        # In this very module: the bias and whoever holds the module stay.
        module.W_q, module.meta = new.W_q, new.meta

    def rounding(self, module: Any, weight: Tensor) -> Tensor:
        params = module.quant_config["weight_quant_params"]
        bits, group = params["nbits"], params["group_size"] or weight.shape[1]
        if params.get("axis", 1) == 0:
            columns = weight.reshape(group, -1).T.contiguous()
            return uniform(columns, bits).T.reshape(weight.shape)
        return uniform(weight.reshape(-1, group), bits).reshape(weight.shape)

    def snapshot(self, module: nn.Module) -> Snapshot:
        kept = super().snapshot(module)
        kept.attributes["meta"] = module.meta
        if "W_q" not in kept.parameters and "W_q" not in kept.buffers:
            kept.attributes["W_q"] = module.W_q
        return kept
