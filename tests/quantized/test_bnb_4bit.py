"""bitsandbytes' nf4 and fp4 layers."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from orthotune import OFTConfig, get_peft_model
from tests.quantized.layer_checks import Subject, error

bnb = pytest.importorskip("bitsandbytes")

#: Products are in the activations' dtype: its rounding and no error of its own; bfloat16 has steps of 2**-8.
F32, B16 = 1e-6, 8e-3


def four_bit(
    linear: nn.Linear, kind: str = "nf4", double: bool = True, dtype: torch.dtype = torch.float32, packs: bool = False
) -> nn.Module:
    """A quantized layer; ``packs`` leaves what packs the weight in an evaluation as the library sets it."""
    bias = linear.bias is not None
    layer = bnb.nn.Linear4bit(
        linear.in_features, linear.out_features, bias=bias, compute_dtype=dtype, quant_type=kind,
        compress_statistics=double,
    )  # fmt: skip
    layer.load_state_dict(linear.state_dict())
    layer = layer.to("cpu").requires_grad_(False).eval()
    if not packs:
        layer.support_avx512bf16_for_cpu = False
    return layer


def _packed(linear: nn.Linear) -> nn.Module:
    layer = four_bit(linear, dtype=torch.bfloat16, packs=True)
    with torch.no_grad():
        layer(torch.zeros(2, linear.in_features, dtype=torch.bfloat16))
    return layer


SUBJECTS = [
    Subject("bnb-nf4-double", four_bit, "nf4, double quantization", product=F32),
    Subject("bnb-nf4", partial(four_bit, double=False), "nf4", product=F32),
    Subject("bnb-fp4-double", partial(four_bit, kind="fp4"), "fp4, double quantization", product=F32),
    Subject("bnb-fp4", partial(four_bit, kind="fp4", double=False), "fp4", product=F32),
    Subject("bnb-nf4-bfloat16", partial(four_bit, dtype=torch.bfloat16), "nf4", dtype=torch.bfloat16, product=B16),
]


def test_an_adapted_layer_is_not_packed_by_an_evaluation() -> None:
    # Elsewhere than on a CPU with AVX512-BF16 it never is, and this holds of itself.
    layer = four_bit(nn.Linear(64, 96), packs=True)
    model = get_peft_model(nn.Sequential(layer), OFTConfig(oft_block_size=16, target_modules=["0"])).eval()
    with torch.no_grad():
        model(torch.randn(3, 64))
    assert not getattr(layer.weight.quant_state, "packing_format_for_cpu", False)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("width", [32, 48, 96])
def test_blocks_that_go_over_the_end_of_a_row(kind: str, width: int) -> None:
    # bitsandbytes 0.50.2 reads these wrong on a CPU, in its forward too; the stored codes and scales are right.
    torch.manual_seed(0)
    linear = nn.Linear(width, 40)
    model = get_peft_model(
        nn.Sequential(four_bit(linear, kind)), OFTConfig(oft_block_size=16, target_modules=["0"])
    ).eval()
    turned, x = model.base_model.model[0], torch.randn(5, width)
    # nf4 and fp4 err by 0.09 and 0.12 for numbers spread like these.
    assert error(turned.matrices()[""], linear.weight) < 0.14
    with torch.no_grad():
        assert error(model(x), nn.functional.linear(x, turned.matrices()[""], linear.bias)) < F32
        turned.oft_R["default"].weight.normal_(std=0.3)
        y = model(x)
        model.merge_adapter()
        assert error(model(x), y) < 0.2


def test_a_layer_that_was_packed_before_is_read_and_trained_right() -> None:
    linear = nn.Linear(64, 96)
    layer = _packed(linear)
    if not getattr(layer.weight.quant_state, "packing_format_for_cpu", False):
        pytest.skip("this CPU has no AVX512-BF16: nothing is packed")
    model = get_peft_model(nn.Sequential(layer), OFTConfig(oft_block_size=16, target_modules=["0"]))
    x = torch.randn(3, 64, dtype=torch.bfloat16, requires_grad=True)
    model(x).float().square().sum().backward()
    assert x.grad is not None
    turned = model.base_model.model[0]
    assert turned.oft_R["default"].weight.grad.abs().max() > 0
    # Packing rounds the blocks' scales to bfloat16, 2**-9, and nf4 itself errs by 0.1.
    assert (turned.matrices()[""] - linear.weight).norm() < 0.12 * linear.weight.norm()
