"""bitsandbytes' int8 layers."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from tests.quantized.layer_checks import Subject

bnb = pytest.importorskip("bitsandbytes")

#: In evaluation its inputs are rounded to int8, too: half a step of 2 / 254 of a row's largest number, four deviations.
INT8 = 1.5e-2


def int8(linear: nn.Linear, threshold: float = 0.0) -> nn.Module:
    bias = linear.bias is not None
    layer = bnb.nn.Linear8bitLt(
        linear.in_features, linear.out_features, bias=bias, has_fp16_weights=False, threshold=threshold
    )
    layer.load_state_dict(linear.state_dict())
    return layer.to("cpu").requires_grad_(False).eval()


SUBJECTS = [
    Subject("bnb-int8", int8, "int8", 8, product=INT8),
    Subject("bnb-int8-outliers", partial(int8, threshold=6.0), "int8", 8, product=INT8),
    Subject("bnb-int8-bfloat16", int8, "int8", 8, dtype=torch.bfloat16, product=INT8),
]
