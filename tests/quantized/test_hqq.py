"""HQQ's own layers."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from tests.quantized.layer_checks import Subject

quantize = pytest.importorskip("hqq.core.quantize")

F32, B16 = 1e-6, 8e-3


def hqq(
    linear: nn.Linear, bits: int = 4, axis: int = 1, dtype: torch.dtype = torch.float32, group: int = 32
) -> nn.Module:
    config = quantize.BaseQuantizeConfig(nbits=bits, group_size=group, axis=axis)
    layer = quantize.HQQLinear(linear, config, compute_dtype=dtype, device="cpu")
    return layer.requires_grad_(False).eval()


SUBJECTS = [
    Subject("hqq-8", partial(hqq, bits=8), "8 bit", 8, product=F32),
    Subject("hqq-4", hqq, "4 bit", product=F32),
    Subject("hqq-4-axis-0", partial(hqq, axis=0), "4 bit", product=F32),
    Subject("hqq-3", partial(hqq, bits=3), "3 bit", 3, product=F32),
    Subject("hqq-2-groups-of-16", partial(hqq, bits=2, group=16), "2 bit", 2, product=F32),
    Subject("hqq-4-bfloat16", partial(hqq, dtype=torch.bfloat16), "4 bit", dtype=torch.bfloat16, product=B16),
]
