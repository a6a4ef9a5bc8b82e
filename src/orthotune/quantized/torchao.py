"""torchao: a plain ``nn.Linear`` whose weight is one of torchao's tensor classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from orthotune.quantized.contract import Library, class_paths
from orthotune.quantized.rounding import floating, uniform


class TorchAO(Library):
    """Quantized by transformers or by ``torchao.quantize_``: the type of the weight has the details.

    Merged into: ``Int8Tensor`` (weight-only and dynamic), ``Float8Tensor``, ``IntxUnpackedToInt8Tensor``. The other
    classes are trained on, and merged to a dense layer.
    """

    name = "torchao"
    classes = ("torchao.utils.TorchAOBaseTensor", "torchao.dtypes.affine_quantized_tensor.AffineQuantizedTensor")

    def claims(self, module: nn.Module) -> bool:
        weight = getattr(module, "weight", None)
        return isinstance(module, nn.Linear) and any(path in self.classes for path in class_paths(type(weight)))

    def mode(self, module: Any) -> str:
        weight, kind = module.weight, type(module.weight).__name__
        acts = getattr(weight, "act_quant_kwargs", None) or getattr(weight, "activation_quantization", None)
        how = "dynamic activations" if acts else "weight-only"
        numbers = {
            "Int8Tensor": "int8",
            "Float8Tensor": "float8",
            "IntxUnpackedToInt8Tensor": str(getattr(weight, "target_dtype", "")).replace("torch.", ""),
        }
        return f"{numbers.get(kind, kind)} {how}"

    def cannot_merge(self, module: Any) -> str | None:
        if type(module.weight).__name__ not in _REQUANTIZE:
            return f"no way known to quantize a new {type(module.weight).__name__}"
        if getattr(module.weight, "act_pre_scale", None) is not None:
            return "scales of its inputs (SmoothQuant, AWQ) that were fitted to the unrotated inputs"
        return None

    def dequantize(self, module: Any) -> Tensor:
        weight = module.weight.data.dequantize().to(torch.float32, copy=True)
        scale = getattr(module.weight, "act_pre_scale", None)
        return weight if scale is None else weight * scale.float()

    def requantize(self, module: Any, weight: Tensor) -> None:
        old = module.weight
        # In the old weight's dtype, as the library quantizes a model of that dtype.
        new = _REQUANTIZE[type(old).__name__](old, weight.to(old.dtype).contiguous())
        module.weight = nn.Parameter(new, requires_grad=False)

    def rounding(self, module: Any, weight: Tensor) -> Tensor:
        old = module.weight
        full = tuple(old.block_size) == tuple(weight.shape) and weight.shape[0] > 1
        matrix = weight.reshape(1, -1) if full else weight
        group = matrix.shape[1] if full else old.block_size[-1]
        if hasattr(old, "target_dtype"):
            bits = int(str(old.target_dtype).removeprefix("torch.int"))
            half = uniform(matrix, bits, group, symmetric=True)
        elif old.qdata.dtype == torch.int8:
            half = uniform(matrix, 7 if old.reduce_range else 8, group, symmetric=True)
        else:
            half = floating(matrix, old.qdata.dtype, group)
        return half.reshape(weight.shape)


def _granularity(weight: Any) -> Any:
    from torchao.quantization.granularity import PerGroup, PerRow, PerTensor

    block, shape = tuple(weight.block_size), tuple(weight.shape)
    if block == shape and shape[0] > 1:
        return PerTensor()
    return PerRow() if block == (1, shape[1]) else PerGroup(block[-1])


def _int8(old: Any, weight: Tensor) -> Tensor:
    from torchao.quantization.quant_primitives import MappingType

    shifted = old.zero_point is not None and bool(old.zero_point.any())
    return type(old).from_hp(
        weight,
        granularity=_granularity(old),
        mapping_type=MappingType.ASYMMETRIC if shifted else MappingType.SYMMETRIC,
        act_quant_kwargs=old.act_quant_kwargs,
        act_quant_scale=old.act_quant_scale,
        act_quant_zero_point=old.act_quant_zero_point,
        reduce_range=old.reduce_range,
    )


def _float8(old: Any, weight: Tensor) -> Tensor:
    return type(old).from_hp(
        weight,
        float8_dtype=old.qdata.dtype,
        granularity=_granularity(old),
        mm_config=old.mm_config,
        kernel_preference=old.kernel_preference,
        act_quant_kwargs=old.act_quant_kwargs,
    )


def _intx(old: Any, weight: Tensor) -> Tensor:
    from torchao.quantization.quant_primitives import MappingType

    shifted = bool(old.zero_point.any())
    return type(old).from_hp(
        weight,
        tuple(old.block_size),
        old.target_dtype,
        mapping_type=MappingType.ASYMMETRIC if shifted else MappingType.SYMMETRIC,
        activation_quantization=old.activation_quantization,
    )


_REQUANTIZE = {"Int8Tensor": _int8, "Float8Tensor": _float8, "IntxUnpackedToInt8Tensor": _intx}
