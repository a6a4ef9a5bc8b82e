"""What autograd keeps of a real forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from orthotune.image.data.batch import Batch
from orthotune.image.families.family import LossOptions


def really_saved(trainee: Any, batch: Batch) -> int:
    """Bytes of the storages that autograd keeps of a training forward, parameters and buffers aside."""
    parts = [*trainee.family.modules().values(), trainee]
    owned = {t.untyped_storage()._cdata for part in parts for t in (*part.parameters(), *part.buffers())}
    saved = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in owned:
            saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        trainee.train()(batch, torch.Generator().manual_seed(0), LossOptions())
    return sum(storage.nbytes() for storage in saved.values())
