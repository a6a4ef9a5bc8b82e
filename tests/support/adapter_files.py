"""Adapter files of other tools for small models, and what they make of these models' weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from orthotune.formats.registry import read_adapter


def lycoris(path: Path, layers: Mapping[str, int], *, butterfly: int = 0, seed: int = 3) -> Path:
    """A LyCORIS file: name of a layer -> its outputs; blocks of 4, in a butterfly of so many stages if asked for."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for name, out in layers.items():
        shape = (butterfly, out // 4, 4, 4) if butterfly else (out // 4, 4, 4)
        tensors[f"{name}.oft_blocks"] = torch.randn(shape, generator=generator) * 0.2
        tensors[f"{name}.alpha"] = torch.tensor(1000.0)
    save_file(tensors, path)
    return path


def onetrainer(path: Path, layers: Mapping[str, int], seed: int = 3) -> Path:
    """A OneTrainer file: name of a layer -> its inputs; blocks of 4."""
    generator = torch.Generator().manual_seed(seed)
    save_file(
        {
            f"{name}.oft_R.weight": torch.randn(features // 4, 6, generator=generator) * 0.1
            for name, features in layers.items()
        },
        path,
    )
    return path


def merged(model: Any, path: Path, places: Mapping[str, str]) -> Any:
    """A copy of the model whose weights the file's own transforms have turned: name in the file -> module."""
    state, new = read_adapter(path), copy.deepcopy(model)
    back = {raw: name for name, raw in state.prefixes.items()}
    for raw, module in places.items():
        layer = new.get_submodule(module)
        with torch.no_grad():
            layer.weight.copy_(state.transform(back.get(raw, raw)).apply(layer.weight))
    return new


def state(model: nn.Module) -> dict[str, Tensor]:
    """The numbers of a model, apart from what later happens to it."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
