"""The bases of the fixtures as modules, under the names that the files mean."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.support.producers import Produced

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def numbers(case: Produced) -> dict[str, Tensor]:
    """What ``io.safetensors`` of a fixture holds."""
    return load_file(case.folder / "io.safetensors")


def places(case: Produced) -> dict[str, str]:
    """Base of ``io.safetensors`` -> name of its module."""
    io = numbers(case)
    bases = [base for base in ("lin", "conv", "emb") if f"{base}.y" in io]
    if case.producer.startswith("peft"):
        return {base: base for base in bases}
    if case.producer == "zeju-oft":
        control = {"conv": "in_layers", "lin": "to_q"}
        return {base: control[base] if "control" in case.folder.name else ATTENTION for base in bases}
    if "flux" in case.producer:
        return {base: "double_blocks.0.img_attn.qkv" for base in bases}
    return {base: f"blk.{base}" for base in bases}


def network(case: Produced) -> nn.Module:
    """A module that holds the fixture's base layers."""
    io, root = numbers(case), nn.Module()
    for base, name in places(case).items():
        put(root, name, layer(io, base))
    return root


def layer(io: dict[str, Tensor], base: str) -> nn.Module:
    """One base layer with its numbers."""
    weight = io[f"{base}.weight"]
    module: nn.Module
    if base == "emb":
        module = nn.Embedding(*weight.shape)
    elif weight.dim() == 2:
        module = nn.Linear(weight.shape[1], weight.shape[0])
    else:
        module = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(io[f"{base}.{name}"])
    return module


def put(root: nn.Module, name: str, module: nn.Module) -> None:
    """Set a module under a dotted name."""
    *parents, last = name.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    root.add_module(last, module)


def lone(folder: Path) -> Produced:
    """A fixture by its folder."""
    files = sorted(folder.glob("adapter*.safetensors"))
    return Produced(folder, folder if (folder / "adapter_config.json").exists() else files[0])
