"""EETQ's layers, with plain torch in place of its kernel, which needs a GPU.

The classes are transformers' own and a copy of the fields of the package's. That shows how they are found, read, run,
differentiated and written through their kernel's two functions, whose results are opaque: the stand-in, like the
kernel, stores the codes in an order of its own. It does not show the real kernel's order, rounding or limits on shapes.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations import eetq as integration

from tests.quantized.layer_checks import Subject, check_llama, quantize_layers


def quant_weights(weight: Tensor, dtype: torch.dtype, _: bool) -> tuple[Tensor, Tensor]:
    """``(in, out)`` float16 -> opaque int8 codes and the scales of the outputs."""
    assert (weight.dtype, dtype, weight.device.type) == (torch.float16, torch.int8, "cpu")
    scales = (weight.float().abs().amax(0) / 127).half()
    codes = (weight.float() / scales.float()).round().clamp(-128, 127)
    return codes.to(torch.int8).flip(0).contiguous(), scales


def w8_a16_gemm(x: Tensor, codes: Tensor, scales: Tensor) -> Tensor:
    assert (x.dtype, codes.dtype, scales.dtype) == (torch.float16, torch.int8, torch.float16)
    return x @ (codes.flip(0).half() * scales)


class W8A16Linear(nn.Module):
    """The package's older class: buffers, and a forward that keeps no graph."""

    __module__ = "eetq.modules.qlinear"

    def __init__(self, linear: nn.Linear, stored: str) -> None:
        super().__init__()
        self.in_features, self.out_features, self.stored = linear.in_features, linear.out_features, stored
        codes, scales = quant_weights(linear.weight.detach().half().t().contiguous(), torch.int8, False)
        self.register_buffer(stored, codes)
        self.register_buffer("weight_scales", scales)
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().half())

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        y = w8_a16_gemm(x, getattr(self, self.stored), self.weight_scales)
        return y if self.bias is None else y + self.bias


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in, where transformers keeps the kernel and where the package has its functions."""
    for name in ("eetq_kernels_hub", "eetq.modules.qlinear"):
        file: Any = ModuleType(name)
        file.quant_weights, file.w8_a16_gemm = quant_weights, w8_a16_gemm
        if name == "eetq_kernels_hub":
            monkeypatch.setattr(integration, name, file, raising=False)
        else:
            monkeypatch.setitem(sys.modules, name, file)


def of_transformers(linear: nn.Linear) -> nn.Module:
    made = integration.EetqLinear(linear.in_features, linear.out_features, bias=linear.bias is not None)
    codes, scales = quant_weights(linear.weight.detach().half().t().contiguous(), torch.int8, False)
    made.weight, made.weight_scales = nn.Parameter(codes, False), nn.Parameter(scales)
    if linear.bias is not None:
        made.bias = nn.Parameter(linear.bias.detach().half())
    return made.eval()


def of_package(linear: nn.Linear, stored: str) -> nn.Module:
    return W8A16Linear(linear, stored).eval()


#: The weight's product with its scale, and the output, are rounded to float16.
F16 = 1e-3
SUBJECTS = [
    Subject("transformers", of_transformers, "int8, one scale for a row", 8, torch.float16, F16),
    Subject("package-qweight", partial(of_package, stored="qweight"), "int8", 8, torch.float16, F16),
    Subject("package-weight", partial(of_package, stored="weight"), "int8", 8, torch.float16, F16),
]


def test_llama(tmp_path: Path) -> None:
    # Two layers of seven products in float16.
    check_llama(lambda model: quantize_layers(model, of_transformers), torch.float16, 1e-2, tmp_path)
