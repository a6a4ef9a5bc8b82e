"""LoRA as the fastest trainers compute it: hand-written gradients for q/k/v, for o, and for the entire MLP.

The published formula (LoRA, arXiv 2106.09685, equation 3), ``y = x W^T + s (x A^T) B^T``, in fewer passes: the
adapters of one input take one product, nothing is saved that can be computed again (``x A^T``, the activation of the
MLP), and gradients are added up inside the products that make them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu


def _forward(
    x: Tensor, scale: float, weights: Sequence[Tensor], down: Sequence[Tensor], up: Sequence[Tensor]
) -> list[Tensor]:
    """Outputs of projections of one input ``(rows, n)``."""
    inner = linear(x, torch.cat([*down]) if len(down) > 1 else down[0]).split([A.shape[0] for A in down], 1)
    return [linear(x, W).addmm_(part, B.t(), alpha=scale) for W, B, part in zip(weights, up, inner, strict=True)]


def _backward(
    x: Tensor, scale: float, weights: Sequence[Tensor], down: Sequence[Tensor], up: Sequence[Tensor],
    grads: Sequence[Tensor], need_dx: bool,
) -> tuple[Tensor | None, list[Tensor], list[Tensor]]:  # fmt: skip
    """Gradients of :func:`_forward`: of the input, of each ``A`` and of each ``B``."""
    ranks = [A.shape[0] for A in down]
    every = torch.cat([*down]) if len(down) > 1 else down[0]
    inner = linear(x, every).split(ranks, 1)
    back = [(g @ B).mul_(scale) for g, B in zip(grads, up, strict=True)]
    joined = torch.cat(back, 1) if len(back) > 1 else back[0]
    dA = [*(joined.t() @ x).split(ranks)]
    dB = [(g.t() @ part).mul_(scale) for g, part in zip(grads, inner, strict=True)]
    if not need_dx:
        return None, dA, dB
    dx = joined @ every
    for g, W in zip(grads, weights, strict=True):
        dx.addmm_(g, W)
    return dx, dA, dB


class _Projections(torch.autograd.Function):
    """Keeps the input alone; weights and adapters are parameters."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, count: int, *given: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, *given)
        ctx.scale, ctx.count = scale, count
        rows = x.reshape(-1, x.shape[-1])
        found = _forward(rows, scale, given[:count], given[count : 2 * count], given[2 * count :])
        return tuple(y.view(*x.shape[:-1], -1) for y in found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, *given = ctx.saved_tensors
        count = ctx.count
        rows, g = x.reshape(-1, x.shape[-1]), [grad.reshape(-1, grad.shape[-1]) for grad in grads]
        parts = given[:count], given[count : 2 * count], given[2 * count :]
        dx, dA, dB = _backward(rows, ctx.scale, *parts, g, ctx.needs_input_grad[0])
        return None if dx is None else dx.view(x.shape), None, None, *[None] * count, *dA, *dB


class _Mlp(torch.autograd.Function):
    """``down(silu(gate(x)) * up(x))``: keeps the input and the two outputs, and computes the activation again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float, *given: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        gate, up = _forward(rows, scale, given[0:2], given[3:5], given[6:8])
        ctx.save_for_backward(x, gate, up, *given)
        ctx.scale = scale
        (y,) = _forward(silu(gate).mul_(up), scale, given[2:3], given[5:6], given[8:9])
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, gate, up, *given = ctx.saved_tensors
        scale, grad = ctx.scale, grads[0].reshape(-1, grads[0].shape[-1])
        rows, active = x.reshape(-1, x.shape[-1]), silu(gate)
        dh, *last = _backward(active * up, scale, given[2:3], given[5:6], given[8:9], [grad], True)
        assert dh is not None
        d_up = dh * active
        d_gate = torch.ops.aten.silu_backward(dh.mul_(up), gate)
        dx, dA, dB = _backward(rows, scale, given[0:2], given[3:5], given[6:8], [d_gate, d_up], ctx.needs_input_grad[0])
        adapters = [*dA, *last[0], *dB, *last[1]]
        return None if dx is None else dx.view(x.shape), None, None, None, None, *adapters


class _Adapters(nn.Module):
    """``A`` and ``B`` of several frozen layers without a bias, ``B`` zero at first; float32 beside bfloat16 weights."""

    def __init__(self, layers: Sequence[nn.Linear], rank: int, alpha: float) -> None:
        super().__init__()
        self.layers, self.scale = nn.ModuleList(layers), alpha / rank
        self.down = nn.ParameterList(
            nn.init.kaiming_uniform_(torch.empty(rank, layer.in_features), a=math.sqrt(5)) for layer in layers
        )
        self.up = nn.ParameterList(torch.zeros(layer.out_features, rank) for layer in layers)

    def tensors(self, dtype: torch.dtype) -> list[Tensor]:
        """Weights, then every ``A``, then every ``B``, in the dtype of the input."""
        weights = [layer.weight for layer in self.layers]
        return [*weights, *(part.to(dtype) for part in (*self.down, *self.up))]


class Projections(_Adapters):
    """Projections of one input."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """The output of each."""
        found: tuple[Tensor, ...] = _Projections.apply(x, self.scale, len(self.layers), *self.tensors(x.dtype))
        return found


class Mlp(_Adapters):
    """Gate, up and down projections of a SwiGLU."""

    def forward(self, x: Tensor) -> Tensor:
        """The output of the MLP."""
        found: Tensor = _Mlp.apply(x, self.scale, *self.tensors(x.dtype))
        return found


class _Turn(nn.Module):
    """One of several projections in the order of the calls: the first call computes all."""

    def __init__(self, every: Projections, place: int, made: list[Tensor]) -> None:
        super().__init__()
        self.every = every if place == 0 else None
        self.place, self.made = place, made

    def forward(self, x: Tensor) -> Tensor:
        if self.every is not None:
            self.made[:] = self.every(x)
        return self.made[self.place]


def fused_lora(model: nn.Module, rank: int = 16, alpha: float = 16.0) -> nn.Module:
    """Give every block of a Llama model fused adapters on all seven projections, in place.

    Args:
        model: a frozen Llama model of transformers, SwiGLU and no biases.
        rank: of every adapter.
        alpha: the numerator of the scale.

    Example:
        >>> from harness.cells import Cell
        >>> from harness.llama import build
        >>> model, x, call = build(Cell(hidden=128, tokens=3, layers=1))
        >>> call(fused_lora(model), x).shape
        torch.Size([1, 3, 128])
    """
    for block in model.layers:  # type: ignore[union-attr]
        attention, mlp = block.self_attn, block.mlp
        names = ("q_proj", "k_proj", "v_proj")
        every, made = Projections([getattr(attention, name) for name in names], rank, alpha), list[Tensor]()
        for place, name in enumerate(names):
            setattr(attention, name, _Turn(every, place, made))
        attention.o_proj = nn.Sequential(Projections([attention.o_proj], rank, alpha), _First())
        block.mlp = Mlp([mlp.gate_proj, mlp.up_proj, mlp.down_proj], rank, alpha)
    return model


class _First(nn.Module):
    def forward(self, found: tuple[Tensor, ...]) -> Tensor:
        return found[0]
