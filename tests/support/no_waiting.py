"""A mode that refuses what would make a program wait for its device."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

#: operations with which a program takes numbers from a device, and waits for it
WAITS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_unique2", "unique_dim"}


class NoWaiting(TorchDispatchMode):
    """Refuses every operation that needs a number of the device on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        away = any(isinstance(one, torch.Tensor) and one.is_meta for one in args)
        to = (kwargs or {}).get("device")
        if away and (name in WAITS or (to is not None and torch.device(to).type == "cpu")):
            raise AssertionError(f"{name} waits for the device")
        self.names[name] += 1
        return func(*args, **(kwargs or {}))
