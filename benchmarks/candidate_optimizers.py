"""Optimizers that ``rotation_candidates.py`` compares: Adam with a shared second moment, and re-centred rotations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from candidate_kinds import Rotation


class SharedAdam(torch.optim.Optimizer):
    """Adam with a shared second moment, per ``block`` (all but the first axis), ``layer`` (tensor) or ``model``.

    With one moment per block the steps are equivariant under a rotation of the coordinates, like momentum on the group.
    The steps of Adam, with one moment per parameter, are not.
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float, share: str, betas: tuple[float, float] = (0.9, 0.999)):
        super().__init__(list(parameters), {"lr": lr, "share": share, "betas": betas})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            first, second = group["betas"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(count=0, mean=torch.zeros_like(p), square=0.0)
                axes = tuple(range(1, p.ndim)) if group["share"] == "block" and p.ndim > 1 else tuple(range(p.ndim))
                state["count"] += 1
                state["mean"].lerp_(p.grad, 1 - first)
                state["square"] = second * state["square"] + (1 - second) * p.grad.square().mean(axes, keepdim=True)
                mean = state["mean"] / (1 - first ** state["count"])
                square = state["square"] / (1 - second ** state["count"])
                state["step"] = (mean, square)
        every = [self.state[p]["step"] for group in self.param_groups for p in group["params"]]
        for group in self.param_groups:
            for p in group["params"]:
                mean, square = self.state[p]["step"]
                if group["share"] == "model":
                    square = sum(s.sum() * m.numel() for m, s in every) / sum(m.numel() for m, _ in every)
                p.sub_(group["lr"] * mean / (square.sqrt() + 1e-12))


@torch.no_grad()
def recentre(candidates: Iterable[nn.Module]) -> None:
    """Accumulate the current rotation of each module, and set its generator to zero."""
    for rotation in (module for candidate in candidates for module in candidate.modules()):
        if isinstance(rotation, Rotation):
            rotation.departure = rotation.blocks().clone()
            rotation.packed.zero_()
