"""A map within a subspace that keeps nothing for its backward but its input and the small map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from orthotune.kernels.autograd import gradients_again, looked_through


def _plain(x: Tensor, A: Tensor, K: Tensor) -> Tensor:
    A = A.to(x.dtype)
    return torch.addmm(x, (x @ A.mT) @ K.to(x.dtype), A)


class _Within(torch.autograd.Function):
    """The basis in the dtype of the input, and the coordinates of the input, are computed again in the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, A: Tensor, K: Tensor) -> Tensor:
        ctx.save_for_backward(x, A, K)
        return _plain(x.reshape(-1, x.shape[-1]), A, K).view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        x, A, K = ctx.saved_tensors
        needed = ctx.needs_input_grad
        if torch.is_grad_enabled():
            rows = x.shape[-1]
            again = gradients_again(
                lambda x, K: [_plain(x.reshape(-1, rows), A, K).view(x.shape)], (x, K), [grad], (needed[0], needed[2])
            )
            return again[0], None, again[1]
        with torch.autocast(grad.device.type, enabled=False):
            basis = A.to(x.dtype)
            g = grad.reshape(-1, x.shape[-1])
            inside = g @ basis.mT
            dx = torch.addmm(g, inside @ K.to(x.dtype).mT, basis).view(x.shape) if needed[0] else None
            dK = ((x.reshape(-1, x.shape[-1]) @ basis.mT).mT @ inside).to(K.dtype) if needed[2] else None
        return dx, None, dK


def rotate_within(x: Tensor, A: Tensor, K: Tensor) -> Tensor:
    """``x (I + Aᵀ K A)`` in the dtype of ``x``; the gradient of ``A``, which is frozen, is not computed.

    Shapes: ``x`` ``(..., n)``, ``A`` ``(r, n)``, ``K`` ``(r, r)``; returns ``(..., n)``.

    Args:
        x: features.
        A: the frozen basis, in its rows.
        K: what is added to the coordinates.

    Example:
        >>> rotate_within(torch.tensor([3.0, 4.0]), torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0]]))
        tensor([3., 8.])
    """
    grad = torch.is_grad_enabled() and (x.requires_grad or K.requires_grad)
    if not grad or looked_through() or A.requires_grad or x.numel() == 0:
        return _plain(x.reshape(-1, x.shape[-1]), A, K).view(x.shape)
    found: Tensor = _Within.apply(x, A, K)
    return found
