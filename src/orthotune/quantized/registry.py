"""Which library a layer belongs to. A library's file joins by one line."""

from __future__ import annotations

from torch import nn

from orthotune.quantized.aqlm import AQLM
from orthotune.quantized.autoawq import AutoAwq
from orthotune.quantized.awq import Awq
from orthotune.quantized.bnb_4bit import Bnb4bit
from orthotune.quantized.bnb_8bit import Bnb8bit
from orthotune.quantized.contract import Library
from orthotune.quantized.eetq import Eetq
from orthotune.quantized.gptq import Gptq
from orthotune.quantized.hqq import HQQ
from orthotune.quantized.inc_fp8 import IncFp8
from orthotune.quantized.inc_weight_only import IncWeightOnly
from orthotune.quantized.quanto import Quanto
from orthotune.quantized.torchao import TorchAO

#: the first that claims a layer serves it
LIBRARIES: list[Library] = [
    Bnb8bit(),
    Bnb4bit(),
    HQQ(),
    TorchAO(),
    Quanto(),
    AQLM(),
    Gptq(),
    Awq(),
    AutoAwq(),
    IncFp8(),
    IncWeightOnly(),
    Eetq(),
]


def library_of(module: nn.Module) -> Library | None:
    """The library that a layer belongs to, or None for a layer that is not quantized by a known one.

    Example:
        >>> library_of(nn.Linear(2, 2)) is None
        True
    """
    return next((library for library in LIBRARIES if library.claims(module)), None)
