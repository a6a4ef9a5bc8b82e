"""Block-diagonal products: the input, or the weight, times a rotation."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x: Tensor, R: Tensor) -> Tensor:
    """``x BD(R)``: each run of ``b`` features times its block.

    Shapes: ``x`` ``(..., n)``, ``R`` ``(n / b, b, b)`` or ``(1, b, b)`` for one shared block; returns ``(..., n)`` in
    the dtype of ``x``. Products accumulate in float32 or better; ``x`` is never copied to float32.

    Example:
        >>> rotate(torch.tensor([1.0, 0.0]), torch.tensor([[[0.0, 1.0], [-1.0, 0.0]]]))
        tensor([0., 1.])
    """
    count, block_size = R.shape[0], R.shape[-1]
    R = R.to(x.dtype)
    if count == 1:
        return (x.reshape(-1, block_size) @ R[0]).reshape(x.shape)
    blocks = x.reshape(-1, count, block_size).transpose(0, 1)
    return torch.bmm(blocks, R).transpose(0, 1).reshape(x.shape)


def rotate_stack(W: Tensor, R: Tensor) -> Tensor:
    """:func:`rotate` for a stack of matrices, each with its own blocks.

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
