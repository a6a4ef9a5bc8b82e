"""What a training step keeps in memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def saved_bytes(forward: Callable[[], Tensor], model: nn.Module) -> int:
    """Bytes that autograd keeps for the backward of ``forward()``.

    Each storage counts once and whole, since a view keeps all of it alive. Parameters and buffers of ``model`` are
    there anyway and do not count.

    Example:
        >>> x = torch.zeros(3, 4, requires_grad=True)
        >>> saved_bytes(lambda: x.exp(), nn.Identity())  # exp keeps its result
        48
    """
    own = {_key(tensor) for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        if _key(tensor) not in own:
            # Holding the storage keeps its address from being given to another tensor.
            kept[_key(tensor)] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    total = sum(storage.nbytes() for storage in kept.values())
    del output
    return total


def peak_bytes(step: Callable[[], None], device: torch.device) -> int | None:
    """How far the allocated GPU memory rises during a step; None on a CPU."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
