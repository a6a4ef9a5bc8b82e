"""A trained model whose parameters are spread over processes: looked at layer by layer, its adapter gathered."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor, nn

from orthotune.layers.base import OFTLayer
from orthotune.layers.parametrization.sharding import is_zero


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 or ZeRO-3 shards the model.

    Example:
        >>> is_sharded(nn.Linear(2, 2))
        False
    """
    return any(_is_unit(module) for module in model.modules()) or any(map(is_zero, model.parameters()))


def unsharded_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """``model.named_modules()``; each adapted layer is unsharded while it is visited.

    No more than one unit of FSDP2, or one layer of ZeRO-3, is gathered at a time. Every process must go through all of
    them.
    """
    units: dict[str, nn.Module] = {}
    held: Any = None
    try:
        for name, module in model.named_modules():
            above: Any = units.get(name.rpartition(".")[0]) if name else None
            unit: Any = module if _is_unit(module) else above
            units[name] = unit
            if unit is not held:
                if held is not None:
                    held.reshard()
                if unit is not None:
                    unit.unshard()
                held = unit
            with _gathered(list(module.parameters()) if isinstance(module, OFTLayer) else []):
                yield name, module
    finally:
        if held is not None:
            held.reshard()


def gathered_adapter(model: nn.Module) -> dict[str, Tensor] | None:
    """The ``state_dict`` for ``save_pretrained`` of a sharded model: the adapter's tensors, unsharded, on the CPU.

    The base is not gathered. None when nothing is sharded. Every process must ask for it.
    """
    if not isinstance(model, PeftModel) or not is_sharded(model):
        return None
    state = model.state_dict(keep_vars=True)
    wanted: set[int] = set()
    for name in model.peft_config:
        wanted |= {id(tensor) for tensor in get_peft_model_state_dict(model, state, name).values()}
    return {name: _full(tensor) for name, tensor in state.items() if id(tensor) in wanted}


def _full(tensor: Any) -> Tensor:
    with torch.no_grad(), _gathered([tensor]):
        complete: Tensor = (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().cpu().clone()
    return complete


def _gathered(parameters: list[Any]) -> AbstractContextManager[Any]:
    put_away = [parameter for parameter in parameters if is_zero(parameter)]
    if not put_away:
        return nullcontext()
    import deepspeed

    gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(put_away)
    return gathered


def _is_unit(module: nn.Module) -> bool:
    return hasattr(module, "unshard") and hasattr(module, "reshard")
