"""Block-diagonal products: the input, or the weight, times a rotation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from orthotune.kernels.choose import choose


def _blocks(x: Tensor, count: int) -> Tensor:
    """``(rows, n)`` -> ``(count, rows, n / count)``, a view."""
    return x.view(x.shape[0], count, -1).transpose(0, 1)


def _product(x: Tensor, R: Tensor) -> Tensor:
    """``x BD(R)`` for ``x`` ``(rows, n)``, in the dtype of ``x``."""
    count, block_size = R.shape[0], R.shape[-1]
    R = R if x.shape[0] == 1 else R.to(x.dtype)
    if count == 1:
        return (x.reshape(-1, block_size) @ R[0].to(x.dtype)).view(x.shape)
    if x.shape[0] == 1:  # decoding: a float32 product of one row is quicker than a bfloat16 one, and closer
        return torch.bmm(x.view(count, 1, block_size).to(R.dtype), R).to(x.dtype).view(x.shape)
    if x.dtype is torch.bfloat16 and x.device.type == "cpu" and not torch.compiler.is_compiling():
        # Written in place of its layout; float32 is quicker through a copy.
        out = torch.empty_like(x)
        torch.bmm(_blocks(x, count), R, out=_blocks(out, count))
        return out
    return torch.bmm(_blocks(x, count), R).transpose(0, 1).reshape(x.shape)


def _forward(x: Tensor, R: Tensor) -> Tensor:
    if choose("rotate", x.device.type, x.dtype, R.shape[-1]).path == "triton":
        from orthotune.kernels import triton_rotate

        return triton_rotate.rotate_forward(x, R)
    return _product(x, R)


def _product_of_features(x: Tensor, y: Tensor, count: int, block_size: int) -> Tensor:
    """``x_i^T y_i`` for each of ``count`` blocks: ``(rows, n)`` twice -> ``(count, b, b)``."""
    if count == 1:
        return (x.reshape(-1, block_size).mT @ y.reshape(-1, block_size)).unsqueeze(0)
    # Two copies and a product of contiguous blocks take half the time of a product of strided ones.
    return torch.bmm(_blocks(x, count).contiguous().mT, _blocks(y, count).contiguous())


class _Rotate(torch.autograd.Function):
    """Keeps the input as it came, so that projections of one input share it, and ``R``, which its map keeps anyway."""

    # One method instead of forward and setup_context: torch binds their arguments anew at every call, which for
    # the few microseconds of a rotation is a third of its time.
    @staticmethod
    def forward(ctx: Any, x: Tensor, R: Tensor) -> Tensor:
        ctx.save_for_backward(x, R)
        return _forward(x, R)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, R = ctx.saved_tensors
        dx = dR = None
        with torch.autocast(grad.device.type, enabled=False):
            grad = grad.contiguous()
            if choose("rotate", x.device.type, x.dtype, R.shape[-1]).path == "triton":
                from orthotune.kernels import triton_rotate

                return triton_rotate.rotate_backward(x, R, grad, *ctx.needs_input_grad)
            if ctx.needs_input_grad[0]:
                dx = _product(grad, R.mT)
            if ctx.needs_input_grad[1]:
                dR = _product_of_features(x, grad, R.shape[0], R.shape[-1]).to(R.dtype)
        return dx, dR


def rotate(x: Tensor, R: Tensor) -> Tensor:
    """``x BD(R)``: each run of ``b`` features times its block.

    Shapes: ``x`` ``(..., n)``, ``R`` ``(n / b, b, b)`` or ``(1, b, b)`` for one shared block; returns ``(..., n)`` in
    the dtype of ``x``, or in autocast's where that is on. Products accumulate in float32 or better; ``x`` is never
    copied to float32.

    Example:
        >>> rotate(torch.tensor([1.0, 0.0]), torch.tensor([[[0.0, 1.0], [-1.0, 0.0]]]))
        tensor([0., 1.])
    """
    if torch.is_autocast_enabled(x.device.type):
        if x.dtype is not torch.float64:
            x = x.to(torch.get_autocast_dtype(x.device.type))
        with torch.autocast(x.device.type, enabled=False):
            return rotate(x, R)
    rows = x.reshape(-1, x.shape[-1])
    if rows.shape[0] == 0:
        return x
    if torch.is_grad_enabled() and (x.requires_grad or R.requires_grad):
        return _Rotate.apply(rows, R).view(x.shape)
    return _forward(rows, R).view(x.shape)


def rotate_stack(W: Tensor, R: Tensor) -> Tensor:
    """:func:`rotate` for a matrix or a stack of matrices, each with its own blocks.

    Shapes: ``W`` ``(..., rows, n)``, ``R`` ``(..., n / b or 1, b, b)`` with the same leading dimensions.
    """
    if W.dim() == 2:
        return rotate(W, R)
    blocks = W.unflatten(-1, (W.shape[-1] // R.shape[-1], R.shape[-1])).transpose(-3, -2)
    return (blocks @ R.to(W.dtype)).transpose(-3, -2).flatten(-2)


def rotate_rows(W: Tensor, R: Tensor) -> Tensor:
    """``BD(R) W``: each run of ``b`` rows times its block from the left.

    Shapes: ``W`` ``(..., n, columns)``, ``R`` ``(..., n / b or 1, b, b)``; returns ``(..., n, columns)``.

    Example:
        >>> rotate_rows(torch.tensor([[1.0], [0.0]]), torch.tensor([[[0.0, -1.0], [1.0, 0.0]]]))
        tensor([[0.],
                [1.]])
    """
    blocks = W.unflatten(-2, (W.shape[-2] // R.shape[-1], R.shape[-1]))
    return (R.to(W.dtype) @ blocks).flatten(-3, -2)
