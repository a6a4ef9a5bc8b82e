"""optimum-quanto's layers."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from tests.quantized.layer_checks import Subject

oq = pytest.importorskip("optimum.quanto")

F32, B16 = 1e-6, 8e-3


def quanto(linear: nn.Linear, kind: str, dtype: torch.dtype = torch.float32, frozen: bool = True) -> nn.Module:
    holder = nn.Sequential(linear.to(dtype))
    oq.quantize(holder, weights=getattr(oq, kind))
    if frozen:
        oq.freeze(holder)
    return holder[0].requires_grad_(False).eval()


SUBJECTS = [
    Subject("quanto-qint8", partial(quanto, kind="qint8"), "qint8", 8, product=F32),
    Subject("quanto-qint4", partial(quanto, kind="qint4"), "qint4", product=F32),
    Subject("quanto-qint2", partial(quanto, kind="qint2"), "qint2", 2, product=F32),
    # A float8 with three bits behind the point is as coarse as six bits of integers.
    Subject("quanto-qfloat8", partial(quanto, kind="qfloat8"), "qfloat8", 6, product=F32),
    Subject(
        "quanto-qint4-bfloat16", partial(quanto, kind="qint4", dtype=torch.bfloat16), "qint4", dtype=torch.bfloat16,
        product=B16,
    ),
    # Not frozen yet: the float weight is there and is quantized in every forward.
    Subject("quanto-qint8-unfrozen", partial(quanto, kind="qint8", frozen=False), "qint8", 8, product=F32),
]  # fmt: skip
