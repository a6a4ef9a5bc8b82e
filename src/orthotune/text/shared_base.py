"""Which quantized bases several processes can train on together: those that torch's DDP or FSDP2 can take apart."""

from __future__ import annotations

from torch import nn

from orthotune.errors import RecipeError
from orthotune.quantized.bnb_8bit import Bnb8bit
from orthotune.quantized.registry import library_of
from orthotune.quantized.torchao import TorchAO


def check_shared_base(model: nn.Module, *, sharded: bool) -> None:
    """Refuse a base whose layers do not live through being shared.

    torchao's int8 tensors (0.18) lack the ``view`` that DDP needs and the ``split`` of FSDP2. bitsandbytes' 8-bit
    weights (0.50) come back from FSDP2 as plain parameters, without the codes and scales that they keep.

    Args:
        model: adapted or not.
        sharded: by FSDP2; else every process has all of it.

    Raises:
        RecipeError: names the first such layer and what to choose instead.

    Example:
        >>> check_shared_base(nn.Linear(2, 2), sharded=True)
    """
    for name, module in model.named_modules():
        library = library_of(module)
        if isinstance(library, TorchAO) or (sharded and isinstance(library, Bnb8bit)):
            torchao = isinstance(library, TorchAO)
            who = "DDP and FSDP2 have" if torchao else "FSDP2 has"
            raise RecipeError(
                f"a {library.name} base under {'fsdp2' if sharded else 'ddp'}",
                got=f"layer '{name.removesuffix('.base_layer')}', whose weight {who} no way to share",
                do="Choose quantization=nf4" + ("" if torchao else ", or distributed=ddp"),
            )
