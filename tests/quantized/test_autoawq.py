"""AWQ layers of AutoAWQ, which is no longer maintained; on a CPU, where its own backward does not run."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.quantized.layer_checks import Subject, check_llama, quantize_layers

# Where triton is, AutoAWQ sends a CPU's tensors to it.
_triton = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "triton"}
sys.modules["triton"] = None  # type: ignore[assignment]
try:
    gemm = pytest.importorskip("awq.modules.linear.gemm", exc_type=ImportError)
finally:
    del sys.modules["triton"]
    sys.modules.update(_triton)


def autoawq(linear: nn.Linear, group: int = 32) -> nn.Module:
    runs = linear.weight.detach().float().view(linear.out_features, -1, group)
    low, high = runs.amin(-1).clamp(max=0), runs.amax(-1).clamp(min=0)
    scales = ((high - low) / 15).half().float()
    zeros = (-low / scales).round()
    # Its packing does not keep codes in their range: a number outside would change its neighbour.
    inside = torch.maximum(torch.minimum(runs, ((15 - zeros) * scales)[..., None]), (-zeros * scales)[..., None])
    clean = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None).requires_grad_(False)
    clean.weight.copy_(inside.view_as(linear.weight))
    if linear.bias is not None:
        clean.bias.copy_(linear.bias)
    scales, zeros = scales.T.contiguous().half(), zeros.T.contiguous().half()
    return gemm.WQLinear_GEMM.from_linear(clean.half(), 4, group, False, scales, zeros).eval()


#: The input, the weight, the product and the output are each rounded to float16.
F16 = 1e-3
SUBJECTS = [
    Subject("gemm", autoawq, "4 bit, groups of 32", product=F16),
    Subject("gemm-16", partial(autoawq, group=16), "4 bit, groups of 16", product=F16),
    Subject("gemm-bfloat16", autoawq, "4 bit, groups of 32", dtype=torch.bfloat16, product=8e-3),
]


def test_llama(tmp_path: Path) -> None:
    # Two layers of seven products in float16.
    check_llama(lambda model: quantize_layers(model, autoawq), torch.float32, 1e-2, tmp_path)
