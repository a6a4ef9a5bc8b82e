"""A weight turned by one rotation, differentiable, keeping nothing of the weight's size for the backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from orthotune.kernels.rotate import rotate_rows, rotate_stack


def _wide(W: Tensor) -> Tensor:
    return W.to(torch.promote_types(W.dtype, torch.float32))


def _blocks(W: Tensor, block_size: int, columns: bool) -> Tensor:
    """``(..., out, in)`` -> ``(..., blocks, rows, b)`` for columns, ``(..., blocks, b, columns)`` for rows."""
    if columns:
        return W.unflatten(-1, (W.shape[-1] // block_size, block_size)).transpose(-3, -2)
    return W.unflatten(-2, (W.shape[-2] // block_size, block_size))


class _TurnOnce(torch.autograd.Function):
    """Keeps the weight, which the layer holds anyway, and the rotation: the float32 copies live for one call."""

    @staticmethod
    def forward(ctx: Any, W: Tensor, factor: Tensor, columns: bool) -> Tensor:
        ctx.save_for_backward(W, factor)
        ctx.columns = columns
        return (rotate_stack if columns else rotate_rows)(_wide(W), factor).to(W.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        W, factor = ctx.saved_tensors
        dW = dF = None
        with torch.autocast(grad.device.type, enabled=False):
            G = _wide(grad)
            if ctx.needs_input_grad[0]:
                dW = (rotate_stack if ctx.columns else rotate_rows)(G, factor.mT).to(W.dtype)
            if ctx.needs_input_grad[1]:
                old, new = (_blocks(T, factor.shape[-1], ctx.columns) for T in (_wide(W), G))
                dF = old.mT @ new if ctx.columns else new @ old.mT
                if factor.shape[-3] == 1:
                    dF = dF.sum(-3, keepdim=True)
        return dW, None if dF is None else dF.to(factor.dtype), None


def turn_once(W: Tensor, factor: Tensor, columns: bool) -> Tensor:
    """``W BD(F)`` (``columns``) or ``BD(F) W``: computed in float32 or better, rounded once to the dtype of ``W``.

    Shapes: ``W`` ``(..., out, in)``, ``F`` ``(..., blocks or 1, b, b)`` with the same leading dimensions.

    Example:
        >>> turn_once(torch.ones(1, 2).bfloat16(), torch.eye(2)[None], columns=True)
        tensor([[1., 1.]], dtype=torch.bfloat16)
    """
    return _TurnOnce.apply(W, factor, columns)
