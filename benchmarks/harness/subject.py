"""The frozen model of a cell, and how it is called."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from harness.cells import Cell


@dataclass(frozen=True)
class Subject:
    """A frozen model with its input.

    Args:
        model: random weights, no gradients.
        x: the input, whose gradient a training step computes.
        call: ``(model, x) -> output``, the same for the frozen model and for an adapted one.
    """

    model: nn.Module
    x: Tensor
    call: Callable[[nn.Module, Tensor], Tensor]

    def twin(self) -> nn.Module:
        """Modules of its own around the same weights: contenders share memory and caches, and nobody gains by order."""
        shared = [*self.model.parameters(), *self.model.buffers()]
        return copy.deepcopy(self.model, {id(tensor): tensor for tensor in shared})


def subject(cell: Cell, device: torch.device) -> Subject:
    """The frozen model of ``cell`` and a random input; the same at every call.

    Example:
        >>> subject(Cell(hidden=128, tokens=5, layers=1), torch.device("cpu")).x.shape
        torch.Size([1, 5, 128])
    """
    # Imported here: diffusers is optional.
    from harness import llama, unet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        build = unet.build if cell.model == "unet" else llama.build
        model, x, call = build(cell)
    dtype = getattr(torch, cell.dtype)
    # torch's own: diffusers' warns of layers to keep in float32 even where there are none.
    model = nn.Module.to(model, device=device, dtype=dtype).requires_grad_(False)
    x = x.to(device=device, dtype=dtype).requires_grad_(cell.mode == "train")
    return Subject(model, x, call)
