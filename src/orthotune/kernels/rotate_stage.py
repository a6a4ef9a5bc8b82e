"""One stage of a butterfly: half blocks change places, blocks are rotated, and the half blocks go back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from orthotune.kernels.autograd import gradients_again, looked_through
from orthotune.kernels.rotate import backward_alone, rotate_joined
from orthotune.rotation.operator import block_product

#: (features, groups, half, whether back) -> which feature comes to each place, for rows on a processor
_places: dict[tuple[int, int, int, bool], Tensor] = {}


def _permuted(x: Tensor, groups: int, half: int, back: bool = False) -> Tensor:
    """Rows ``(rows, n)`` with the half blocks of each block beside each other, or back in their places."""
    shape = (-1, groups, 2, half) if back else (-1, 2, groups, half)
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return x.unflatten(-1, shape).transpose(-3, -2).flatten(-4)
    # A selection of features takes a quarter of the time of a copy of runs that are so short; two numbers of 16 bits
    # are selected as one of 32.
    pairs = x.element_size() == 2 and half % 2 == 0 and x.is_contiguous()
    if pairs:
        return _permuted(x.view(torch.float32), groups, half // 2, back).view(x.dtype)
    key = (x.shape[-1], groups, half, back)
    places = _places.get(key)
    if places is None:
        with torch.inference_mode(False):
            places = torch.arange(x.shape[-1]).view(shape).transpose(-3, -2).reshape(-1)
        if type(places) is torch.Tensor:  # a fake tensor must not outlive its trace
            _places[key] = places
    return x.index_select(-1, places)


def _product(x: Tensor, R: Tensor, groups: int) -> Tensor:
    half = R.shape[-1] // 2
    return _permuted(rotate_joined(_permuted(x, groups, half), R)[0], groups, half, back=True)


class _Stage(torch.autograd.Function):
    """Keeps the input as it came, which several layers share, and not its features in another order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, R: Tensor, groups: int) -> Tensor:
        ctx.save_for_backward(x, R)
        ctx.groups = groups
        return _product(x.reshape(-1, x.shape[-1]), R, groups).view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, R = ctx.saved_tensors
        groups, half = ctx.groups, R.shape[-1] // 2
        if torch.is_grad_enabled():
            needed = ctx.needs_input_grad[:2]
            again = gradients_again(lambda x, R: [block_product(x, R, groups)], (x, R), [grad], needed)
            return again[0], again[1], None
        with torch.autocast(grad.device.type, enabled=False):
            rows, g = (_permuted(part.reshape(-1, x.shape[-1]), groups, half) for part in (x, grad))
            dx, dR = backward_alone(rows, R, g, *ctx.needs_input_grad[:2])
        return None if dx is None else _permuted(dx, groups, half, back=True).view(x.shape), dR, None


def rotate_stage(x: Tensor, R: Tensor, groups: int) -> Tensor:
    """``x`` times a stage of a butterfly, see :class:`~orthotune.rotation.operator.Stage`.

    Shapes: ``x`` ``(..., n)``, ``R`` ``(n / b, b, b)``; returns ``(..., n)`` in the dtype of ``x``.

    Args:
        x: features in their own order.
        R: blocks, of an even size.
        groups: how many half blocks lie between the two halves of a block, plus one.

    Example:
        >>> quarter = torch.tensor([[[0.0, 1.0], [-1.0, 0.0]]]).repeat(2, 1, 1)
        >>> rotate_stage(torch.tensor([1.0, 2.0, 3.0, 4.0]), quarter, 2)
        tensor([-3., -4.,  1.,  2.])
    """
    if looked_through() or x.numel() == 0:
        return block_product(x, R, groups)
    if torch.is_grad_enabled() and (x.requires_grad or R.requires_grad):
        found: Tensor = _Stage.apply(x, R, groups)
        return found
    return _product(x.reshape(-1, x.shape[-1]), R, groups).view(x.shape)
