"""Build modules from the names and shapes of tensors, to carry an adapter without a model class."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

_CONVS = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}


def module_tree(shapes: Mapping[str, tuple[int, ...]]) -> nn.Module:
    """A tree of layers on the meta device: a linear layer for each ``X.weight`` of two dimensions, else a convolution.

    Args:
        shapes: name of a tensor -> its shape. Tensors that are not weights of a layer (norms, buffers) are ignored.

    Example:
        >>> module_tree({"blk.lin.weight": (4, 2), "blk.norm.weight": (4,)}).blk.lin
        Linear(in_features=2, out_features=4, bias=False)
    """
    root = nn.Module()
    for name, shape in shapes.items():
        path, _, leaf = name.rpartition(".")
        if leaf != "weight" or not path or len(shape) not in (2, *_CONVS) or 0 in shape:
            continue
        module: nn.Module
        bias = f"{path}.bias" in shapes
        with torch.device("meta"):
            if len(shape) == 2:
                module = nn.Linear(shape[1], shape[0], bias=bias)
            else:
                module = _CONVS[len(shape)](shape[1], shape[0], tuple(shape[2:]), bias=bias)  # type: ignore[arg-type]
        *parents, last = path.split(".")
        holder = root
        for parent in parents:
            if parent not in holder._modules:
                holder.add_module(parent, nn.Module())
            holder = holder.get_submodule(parent)
        if last not in holder._modules:
            holder.add_module(last, module)
    return root
