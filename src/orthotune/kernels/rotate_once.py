"""Rotate a weight once, differentiably, without saving a tensor of the weight's size for the backward."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from orthotune.kernels.autograd import gradients_again, looked_through
from orthotune.kernels.rotate import rotate_rows, rotate_stack

#: Numbers of a weight that are worked on at once: their float32 copy and the product stay in a core's own cache.
RUN = 1 << 18


def _wide(W: Tensor) -> Tensor:
    return W.to(torch.promote_types(W.dtype, torch.float32))


def _blocks(W: Tensor, block_size: int, columns: bool) -> Tensor:
    """``(..., out, in)`` -> ``(..., blocks, rows, b)`` for columns, ``(..., blocks, b, columns)`` for rows."""
    if columns:
        return W.unflatten(-1, (W.shape[-1] // block_size, block_size)).transpose(-3, -2)
    return W.unflatten(-2, (W.shape[-2] // block_size, block_size))


def _runs(W: Tensor, factor: Tensor, columns: bool) -> Iterator[tuple[slice, Tensor]]:
    """Runs of rows of ``W`` with the blocks that act on them; rotated rows are not split within a block."""
    size = 1 if columns else factor.shape[-1]
    high = max(RUN // max(W.numel() // max(W.shape[-2], 1), 1) // size, 1) * size
    for top in range(0, W.shape[-2], high):
        rows = slice(top, min(top + high, W.shape[-2]))
        complete = columns or factor.shape[-3] == 1
        yield rows, factor if complete else factor[..., rows.start // size : rows.stop // size, :, :]


class _RotateOnce(torch.autograd.Function):
    """Keeps the weight, which the layer holds anyway, and the rotation: the float32 copies live for one run of rows."""

    @staticmethod
    def forward(ctx: Any, W: Tensor, factor: Tensor, columns: bool) -> Tensor:
        ctx.save_for_backward(W, factor)
        ctx.columns = columns
        act, out = rotate_stack if columns else rotate_rows, torch.empty_like(W)
        for rows, own in _runs(W, factor, columns):
            out[..., rows, :] = act(_wide(W[..., rows, :]), own)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        W, factor = ctx.saved_tensors
        if torch.is_grad_enabled():
            plain = partial(_plain, columns=ctx.columns)
            again = gradients_again(lambda W, F: [plain(W, F)], (W, factor), [grad], ctx.needs_input_grad[:2])
            return again[0], again[1], None
        columns, b = ctx.columns, factor.shape[-1]
        act = rotate_stack if columns else rotate_rows
        dW = torch.empty_like(W) if ctx.needs_input_grad[0] else None
        dF = _wide(torch.zeros_like(factor)) if ctx.needs_input_grad[1] else None
        with torch.autocast(grad.device.type, enabled=False):
            for rows, own in _runs(W, factor, columns):
                G = _wide(grad[..., rows, :])
                if dW is not None:
                    dW[..., rows, :] = act(G, own.mT)
                if dF is not None:
                    old, new = (_blocks(T, b, columns) for T in (_wide(W[..., rows, :]), G))
                    found = old.mT @ new if columns else new @ old.mT
                    if factor.shape[-3] == 1:
                        found = found.sum(-3, keepdim=True)
                    if columns or factor.shape[-3] == 1:
                        dF += found
                    else:
                        dF[..., rows.start // b : rows.stop // b, :, :] = found
        return dW, None if dF is None else dF.to(factor.dtype), None


def _plain(W: Tensor, factor: Tensor, columns: bool) -> Tensor:
    """The product in plain operations, in float32 or better, rounded to the dtype of ``W``."""
    blocks = _blocks(_wide(W), factor.shape[-1], columns)
    if columns:
        return (blocks @ factor).transpose(-3, -2).flatten(-2).to(W.dtype)
    return (factor @ blocks).flatten(-3, -2).to(W.dtype)


def rotate_once(W: Tensor, factor: Tensor, columns: bool) -> Tensor:
    """``W BD(F)`` (``columns``) or ``BD(F) W``: computed in float32 or better, rounded once to the dtype of ``W``.

    Shapes: ``W`` ``(..., out, in)``, ``F`` ``(..., blocks or 1, b, b)`` with the same leading dimensions.

    Example:
        >>> rotate_once(torch.ones(1, 2).bfloat16(), torch.eye(2)[None], columns=True)
        tensor([[1., 1.]], dtype=torch.bfloat16)
    """
    if looked_through():
        return _plain(W, factor, columns)
    return _RotateOnce.apply(W, factor, columns)
