"""EETQ's eight-bit layers, in transformers and in the eetq package."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from orthotune.quantized.contract import Library, class_paths
from orthotune.quantized.identity import through_identity
from orthotune.quantized.rounding import uniform


class Eetq(Library):
    """One int8 weight ``(in, out)`` in the kernel's own order and a float16 scale for every output.

    The order is known to the kernel alone: the weight is read as its product with the identity. The package's layer
    runs without a graph in evaluation, so the generic backward is used.
    """

    name = "eetq"
    classes = (
        "transformers.integrations.eetq.EetqLinear",
        "eetq.modules.qlinear.EetqLinear",
        "eetq.modules.qlinear.W8A16Linear",
    )
    no_merge = None

    def mode(self, module: Any) -> str:
        return "int8, one scale for a row"

    def features(self, module: Any) -> tuple[int, int]:
        width, out = getattr(module, _stored(module)).shape
        return out, width

    def prepare(self, module: Any) -> None:
        """transformers leaves scales and bias trainable."""
        module.requires_grad_(False)

    def dequantize(self, module: Any) -> Tensor:
        stored = getattr(module, _stored(module))
        return through_identity(
            lambda x: self._kernel(module).w8_a16_gemm(x, stored, module.weight_scales),
            self.features(module), torch.float16, stored.device,
        )  # fmt: skip

    def requantize(self, module: Any, weight: Tensor) -> None:
        half = weight.T.to(torch.float16).contiguous().cpu()
        codes, scales = self._kernel(module).quant_weights(half, torch.int8, False)
        for name, tensor in ((_stored(module), codes), ("weight_scales", scales.to(torch.float16))):
            tensor = tensor.to(weight.device)
            setattr(module, name, nn.Parameter(tensor, False) if name in module._parameters else tensor)

    def rounding(self, module: Any, weight: Tensor) -> Tensor:
        # The weight, its scale and their product are each rounded to float16.
        eps = torch.finfo(torch.float16).eps
        return uniform(weight, 8, symmetric=True) * (1 + 2 * eps) + weight.abs() * 2 * eps

    def _kernel(self, module: Any) -> Any:
        """The functions that the layer's own file calls."""
        path = next(path for path in class_paths(type(module)) if path in self.classes)
        file = sys.modules[path.rpartition(".")[0]]
        return getattr(file, "eetq_kernels_hub", file)


def _stored(module: Any) -> str:
    return "qweight" if "qweight" in module._buffers else "weight"
