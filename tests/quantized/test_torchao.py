"""Plain linear layers with torchao's weights."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from orthotune import OFTConfig, get_peft_model
from tests.quantized.layer_checks import Subject, error

ao = pytest.importorskip("torchao.quantization")
from torchao.quantization.granularity import PerGroup, PerTensor  # noqa: E402

#: Weight-only products are in the activations' dtype; dynamic ones round the inputs to int8, half a step of 2 / 254.
F32, B16, INT8 = 1e-6, 8e-3, 1.5e-2


def torchao(linear: nn.Linear, config: object, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Quantized by ``torchao.quantize_`` alone, without transformers."""
    holder = nn.Sequential(linear.to(dtype))
    ao.quantize_(holder, config)
    return holder[0].requires_grad_(False).eval()


_INT8, _DYNAMIC = ao.Int8WeightOnlyConfig(), ao.Int8DynamicActivationInt8WeightConfig()
_FLOAT8 = ao.Float8WeightOnlyConfig()


def _intx(bits: int) -> object:
    return ao.IntxWeightOnlyConfig(weight_dtype=getattr(torch, f"int{bits}"), granularity=PerGroup(32))


SUBJECTS = [
    Subject("torchao-int8", partial(torchao, config=_INT8), "int8 weight-only", 8, product=F32),
    Subject("torchao-int8-dynamic", partial(torchao, config=_DYNAMIC), "int8 dynamic activations", 8, product=INT8),
    # A float8 with three bits behind the point is as coarse as six bits of integers.
    Subject("torchao-float8", partial(torchao, config=_FLOAT8), "float8 weight-only", 6, product=F32),
    Subject("torchao-int4", partial(torchao, config=_intx(4)), "int4 weight-only", product=F32),
    Subject("torchao-int2", partial(torchao, config=_intx(2)), "int2 weight-only", 2, product=F32),
    Subject(
        "torchao-int8-bfloat16", partial(torchao, config=_INT8, dtype=torch.bfloat16), "int8 weight-only", 8,
        dtype=torch.bfloat16, product=B16,
    ),
]  # fmt: skip


def test_one_scale_for_the_whole_weight_stays_one() -> None:
    config = ao.Int8WeightOnlyConfig(granularity=PerTensor())
    model = Subject("", partial(torchao, config=config), "").model().eval()
    layer = model.base_model.model.layer.get_base_layer()
    model.merge_adapter()
    assert layer.weight.scale.numel() == 1


def test_a_quantized_layer_without_an_adapter_passes_the_right_gradient() -> None:
    # int8 dynamic has no backward at all: adapters before it would learn from what goes round it alone.
    torch.manual_seed(0)
    last = torchao(nn.Linear(96, 32), _DYNAMIC)
    net = nn.Sequential(nn.Linear(64, 96), last)
    model = get_peft_model(net, OFTConfig(oft_block_size=16, target_modules=["0"]))
    x = torch.randn(5, 64, requires_grad=True)
    y = model(x)
    g = torch.randn_like(y)
    y.backward(g)
    wanted = g @ last.weight.dequantize() @ net[0].get_base_layer().weight
    assert error(x.grad, wanted) < 1e-6  # two products in float32; the adapter is still the identity
    model.unload()
    assert "forward" not in vars(last)
