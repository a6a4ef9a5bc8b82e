"""A map within a subspace that keeps little for its backward: its input, the coordinates of it, and the small map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from orthotune.kernels.autograd import gradients_again, looked_through


def _plain(x: Tensor, A: Tensor, S: Tensor) -> Tensor:
    A = A.to(x.dtype)
    inside = x @ A.mT
    return torch.addmm(x, torch.addmm(inside, inside, S.to(x.dtype), beta=-1), A)


class _Within(torch.autograd.Function):
    """The coordinates of the input are kept, a product with the basis less in the backward; its cast is made again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, S: Tensor) -> Tensor:
        basis, rows = A.to(x.dtype), x.reshape(-1, x.shape[-1])
        inside = rows @ basis.mT
        # The input is kept for second derivatives alone, and is kept by the layer before anyway.
        ctx.save_for_backward(x, A, S, inside)
        return torch.addmm(rows, torch.addmm(inside, inside, S.to(x.dtype), beta=-1), basis).view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        x, A, S, inside = ctx.saved_tensors
        needed = ctx.needs_input_grad
        if torch.is_grad_enabled():
            rows = x.shape[-1]
            again = gradients_again(
                lambda x, S: [_plain(x.reshape(-1, rows), A, S).view(x.shape)], (x, S), [grad], (needed[0], needed[2])
            )
            return again[0], None, again[1]
        with torch.autocast(grad.device.type, enabled=False):
            basis = A.to(x.dtype)
            g = grad.reshape(-1, x.shape[-1])
            within = g @ basis.mT
            dx = dS = None
            if needed[0]:
                dx = torch.addmm(g, torch.addmm(within, within, S.to(x.dtype).mT, beta=-1), basis).view(x.shape)
            if needed[2]:
                dS = (inside.mT @ within).to(S.dtype)
        return dx, None, dS


def rotate_within(x: Tensor, A: Tensor, S: Tensor) -> Tensor:
    """``x (I + Aᵀ (S - I) A)`` in the dtype of ``x``; the gradient of ``A``, which is frozen, is not computed.

    Shapes: ``x`` ``(..., n)``, ``A`` ``(r, n)``, ``S`` ``(r, r)``; returns ``(..., n)``.

    Args:
        x: features.
        A: the frozen basis, in its rows.
        S: the map of the coordinates.

    Example:
        >>> rotate_within(torch.tensor([3.0, 4.0]), torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0]]))
        tensor([3., 8.])
    """
    grad = torch.is_grad_enabled() and (x.requires_grad or S.requires_grad)
    if not grad or looked_through() or A.requires_grad or x.numel() == 0:
        return _plain(x.reshape(-1, x.shape[-1]), A, S).view(x.shape)
    found: Tensor = _Within.apply(x, A, S)
    return found
