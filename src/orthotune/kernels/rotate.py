"""Block-diagonal products: the input, or the weight, times a rotation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from orthotune.kernels.autograd import gradients_again, looked_through
from orthotune.kernels.choose import choose, started
from orthotune.kernels.tiles import MOST_TOGETHER
from orthotune.rotation.operator import Operator, Within, block_product

T = TypeVar("T")


def _blocks(x: Tensor, count: int) -> Tensor:
    """``(rows, n)`` -> ``(count, rows, n / count)``, a view."""
    return x.view(x.shape[0], count, -1).transpose(0, 1)


def _from_blocks(x: Tensor, R: Tensor) -> Tensor:
    """``x_i R_i`` of blocks ``(count, rows, k)`` and ``(count, k, b)`` -> ``(rows, count b)``."""
    if x.dtype is torch.bfloat16 and x.device.type == "cpu" and not torch.compiler.is_compiling():
        # Written in place of its layout; float32 is quicker through a copy.
        out = x.new_empty(x.shape[1], x.shape[0] * R.shape[-1])
        torch.bmm(x, R, out=_blocks(out, x.shape[0]))
        return out
    return torch.bmm(x, R).transpose(0, 1).reshape(x.shape[1], -1)


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """``torch.cat(tensors)``, without a copy where they lie one behind the other, as the rotations of a batch do.

    Example:
        >>> complete = torch.zeros(5, 2, 2)
        >>> joined(complete.split([2, 3])).data_ptr() == complete.data_ptr()
        True
    """
    first = tensors[0]
    if len(tensors) == 1:
        return first
    pointer, offset = first.untyped_storage().data_ptr(), first.storage_offset()
    for t in tensors:
        if not t.is_contiguous() or t.storage_offset() != offset or t.untyped_storage().data_ptr() != pointer:
            return torch.cat(tuple(tensors))
        offset += t.numel()
    rows = sum(t.shape[0] for t in tensors)
    return first.as_strided((rows, *first.shape[1:]), first.stride(), first.storage_offset())


def rotate_joined(x: Tensor, R: Tensor, times: int = 1) -> Sequence[Tensor]:
    """:func:`rotate_each` for rotations that are one tensor already, without a gradient.

    Shapes: ``x`` ``(..., n)``, ``R`` ``(times * n / b, b, b)`` or ``(times, b, b)`` for shared blocks.
    """
    kernel = choose("rotate", x.device, x.dtype, R.shape[-1]).path
    if x.numel() == x.shape[-1] and kernel == "torch" and R.shape[0] > times:
        return rotate_row(x, R, times)
    rows = x.reshape(-1, x.shape[-1])
    found: Sequence[Tensor] | None = None
    if kernel == "triton":
        from orthotune.kernels import triton_rotate

        found = _started(rows, R, lambda: triton_rotate.rotate_forward(rows, R, times))
    if found is None:
        found = _products(rows, R, times)
    return found if x.dim() == 2 else [y.view(x.shape) for y in found]


def _started(x: Tensor, R: Tensor, launch: Callable[[], T]) -> T | None:
    return started("rotate", x.device, x.dtype, R.shape[-1], launch)


def rotate_row(x: Tensor, R: Tensor, times: int = 1) -> Sequence[Tensor]:
    """:func:`rotate_joined` for a single row on a CPU, as in decoding, where calls cost more than what they compute.

    A float32 product of one row is quicker than a bfloat16 one, and closer. The row is repeated before the conversion
    to float32, which is the quickest way for so few elements. ``.float()`` and ``view_as`` take half the time of
    ``.to`` and of ``view`` with a shape.

    Shapes: ``x`` ``(..., n)`` with one row, ``R`` ``(times * n / b, b, b)``.

    Example:
        >>> rotate_row(torch.tensor([1.0, 0.0]), torch.tensor([[[0.0, 1.0], [-1.0, 0.0]]]))[0]
        tensor([0., 1.])
    """
    row, dtype = x.reshape(-1, 1, R.shape[-1]), x.dtype
    if times > 1:
        row = torch.cat((row,) * times)
    if dtype is R.dtype:
        y = torch.bmm(row, R)
    elif R.dtype is torch.float32:
        y = torch.bmm(row.float(), R)
        y = y.bfloat16() if dtype is torch.bfloat16 else y.to(dtype)
    else:
        y = torch.bmm(row.to(R.dtype), R).to(dtype)
    return (y.view_as(x),) if times == 1 else y.view(times, *x.shape).unbind()


def _products(x: Tensor, R: Tensor, times: int) -> Sequence[Tensor]:
    count, block_size = R.shape[0] // times, R.shape[-1]
    if count == 1:
        return [(x.reshape(-1, block_size) @ own.to(x.dtype)).view(x.shape) for own in R]
    blocks = _blocks(x, count)
    if times > 1:
        blocks = blocks.contiguous()  # costs no more than what one product of strided blocks loses
    R = R.to(x.dtype)
    return [_from_blocks(blocks, own) for own in (R.split(count) if times > 1 else (R,))]


def backward_alone(
    x: Tensor, R: Tensor, grad: Tensor, need_dx: bool, need_dR: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of one product ``x BD(R)`` of rows ``(rows, n)``, those that are needed."""
    count, block_size = R.shape[0], R.shape[-1]
    if choose("rotate", x.device, x.dtype, block_size).path == "triton":
        from orthotune.kernels import triton_rotate

        found = _started(x, R, lambda: triton_rotate.rotate_backward(x, R, (grad,), need_dx, need_dR))
        if found is not None:
            return found[0], found[1][0]
    dx = dR = None
    if count == 1:
        g = grad.reshape(-1, block_size)
        dx = (g @ R[0].mT.to(g.dtype)).view(x.shape) if need_dx else None
        dR = (x.reshape(-1, block_size).mT @ g).unsqueeze(0) if need_dR else None
    else:
        # Two copies and a product of contiguous blocks take half the time of a product of strided ones.
        g = _blocks(grad, count).contiguous()
        dx = _from_blocks(g, R.mT.to(g.dtype)) if need_dx else None
        dR = torch.bmm(_blocks(x, count).contiguous().mT, g) if need_dR else None
    return dx, None if dR is None else dR.to(R.dtype)


def _backward_together(
    x: Tensor, R: Tensor, grads: Sequence[Tensor], need_dx: bool, need_dR: bool
) -> tuple[Tensor | None, Sequence[Tensor | None]]:
    """Gradients of several rotations ``(times * count, b, b)`` of one input, side by side in one product each."""
    times, block_size = len(grads), R.shape[-1]
    if choose("rotate", x.device, x.dtype, block_size).path == "triton":
        from orthotune.kernels import triton_rotate

        made = _started(x, R, lambda: triton_rotate.rotate_backward(x, R, grads, need_dx, need_dR))
        if made is not None:
            return made
    count = R.shape[0] // times
    R = R.view(times, count, block_size, block_size)
    g = x.new_empty(count, x.shape[0], times, block_size)
    for place, grad in zip(g.unbind(2), grads, strict=True):
        place.copy_(_blocks(grad, count))
    g = g.flatten(2)
    dx: Tensor | None = None
    dR: Sequence[Tensor | None] = [None] * times
    if need_dx:
        dx = _from_blocks(g, R.permute(1, 0, 3, 2).to(x.dtype).reshape(count, -1, block_size))
    if need_dR:
        found = torch.bmm(_blocks(x, count).contiguous().mT, g).view(count, block_size, times, block_size)
        dR = R.new_empty(R.shape).copy_(found.permute(2, 0, 1, 3)).unbind()
    return dx, dR


class _Rotate(torch.autograd.Function):
    """Keeps the input as it came, so that projections of one input share it, and ``R``, which its map keeps anyway."""

    # One method instead of forward and setup_context: torch binds their arguments anew at every call, which for
    # the few microseconds of a rotation is a third of its time.
    @staticmethod
    def forward(ctx: Any, x: Tensor, *rotations: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, *rotations)
        ctx.set_materialize_grads(False)
        return tuple(rotate_joined(x, joined(rotations), len(rotations)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *rotations = ctx.saved_tensors
        if torch.is_grad_enabled():
            return gradients_again(rotate_plain, (x, *rotations), grads, ctx.needs_input_grad)
        if torch.is_autocast_enabled(x.device.type):
            with torch.autocast(x.device.type, enabled=False):
                return _backward(x, rotations, grads, *ctx.needs_input_grad)
        return _backward(x, rotations, grads, *ctx.needs_input_grad)


def _backward(
    x: Tensor, rotations: Sequence[Tensor], grads: Sequence[Tensor | None], need_dx: bool, *need_dR: bool
) -> tuple[Tensor | None, ...]:
    shape, x = x.shape, x.reshape(-1, x.shape[-1])
    came = {i: grad.reshape(x.shape) for i, grad in enumerate(grads) if grad is not None}
    dx: Tensor | None = None
    dR: list[Tensor | None] = [None] * len(rotations)
    R = rotations[0]
    path = choose("rotate", x.device, x.dtype, R.shape[-1]).path if len(came) > 1 else "torch"
    if len(came) > 1 and R.shape[0] > 1 and (path == "torch" or len(came) <= MOST_TOGETHER):
        R = joined([rotations[i] for i in came])
        dx, found = _backward_together(x, R, [*came.values()], need_dx, any(need_dR))
        for i, one in zip(came, found, strict=True):
            dR[i] = one
    else:
        for i, grad in came.items():
            more, dR[i] = backward_alone(x, rotations[i], grad, need_dx, need_dR[i])
            dx = more if dx is None or more is None else dx.add_(more)
    return None if dx is None else dx.view(shape), *dR


def rotate_plain(x: Tensor, *rotations: Tensor) -> list[Tensor]:
    """:func:`rotate_each` in plain operations: what transforms of functions, second derivatives and traces see.

    Example:
        >>> rotate_plain(torch.zeros(0, 4), torch.eye(2)[None])[0].shape
        torch.Size([0, 4])
    """
    found = []
    for R in rotations:
        blocks = x.unflatten(-1, (x.shape[-1] // R.shape[-1], R.shape[-1]))
        if R.shape[0] == 1:
            found.append((blocks @ R[0].to(x.dtype)).flatten(-2))
        else:
            found.append(torch.einsum("...kb,kbc->...kc", blocks, R.to(x.dtype)).flatten(-2))
    return found


def rotate(x: Tensor, R: Tensor | Operator) -> Tensor:
    """``x BD(R)``: each run of ``b`` features times its block; or ``x M`` for an operator ``M``.

    Shapes: ``x`` ``(..., n)``, ``R`` ``(n / b, b, b)`` or ``(1, b, b)`` for one shared block; returns ``(..., n)`` in
    the dtype of ``x``, or in autocast's where that is on. Products accumulate in float32 or better; ``x`` is never
    copied to float32.

    Example:
        >>> rotate(torch.tensor([1.0, 0.0]), torch.tensor([[[0.0, 1.0], [-1.0, 0.0]]]))
        tensor([0., 1.])
    """
    return multiplied(x, R) if isinstance(R, Operator) else rotate_each(x, (R,))[0]


def multiplied(x: Tensor, operator: Operator) -> Tensor:
    """``x M`` in the dtype of ``x``, or in autocast's where that is on; products of blocks by their kernels.

    Example:
        >>> from orthotune.rotation.operator import LowRank
        >>> multiplied(torch.tensor([3.0, 4.0]), LowRank(torch.tensor([[1.0, -1.0]]), torch.tensor([[-1.0, 1.0]])))
        tensor([4., 3.])
    """
    if torch.is_autocast_enabled(x.device.type):
        if x.dtype is not torch.float64:
            x = x.to(torch.get_autocast_dtype(x.device.type))
        with torch.autocast(x.device.type, enabled=False):
            return multiplied_alone(x, operator)
    return multiplied_alone(x, operator)


def multiplied_alone(x: Tensor, operator: Operator) -> Tensor:
    """:func:`multiplied` where autocast is off.

    Example:
        >>> from orthotune.rotation.operator import Within
        >>> multiplied_alone(torch.tensor([3.0, 4.0]), Within(torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0]])))
        tensor([3., 8.])
    """
    if isinstance(operator, Within) and operator.A.dim() == 2:
        from orthotune.kernels.rotate_within import rotate_within

        return rotate_within(x, operator.A, operator.S)
    return operator.right(x, _block_product)


def _block_product(x: Tensor, R: Tensor, groups: int) -> Tensor:
    if R.dim() == 4:
        return block_product(x, R, groups)
    if groups == 1:
        return rotate_each(x, (R,))[0]
    from orthotune.kernels.rotate_stage import rotate_stage  # stands on this file

    return rotate_stage(x, R, groups)


def rotate_each(x: Tensor, rotations: Sequence[Tensor]) -> Sequence[Tensor]:
    """:func:`rotate` of one input by several rotations of the same shape, as for query, key and value.

    Their gradients come from one product side by side: for the input it is summed in float32 and rounded once.

    Example:
        >>> [y.tolist() for y in rotate_each(torch.tensor([1.0, 2.0]), (torch.eye(2)[None], -torch.eye(2)[None]))]
        [[1.0, 2.0], [-1.0, -2.0]]
    """
    if torch.is_autocast_enabled(x.device.type):
        if x.dtype is not torch.float64:
            x = x.to(torch.get_autocast_dtype(x.device.type))
        with torch.autocast(x.device.type, enabled=False):
            return rotate_each(x, rotations)
    if looked_through() or (not torch.compiler.is_compiling() and x.numel() == 0):
        return rotate_plain(x, *rotations)
    if torch.is_grad_enabled() and (x.requires_grad or any(R.requires_grad for R in rotations)):
        found: Sequence[Tensor] = _Rotate.apply(x, *rotations)
        return found
    return rotate_joined(x, joined(rotations), len(rotations))


def rotate_channels(x: Tensor, R: Tensor | Operator, spatial: int) -> Tensor:
    """:func:`rotate` along the channels of an image, in its own memory format.

    Shapes: ``x`` ``(batch, channels, *size)`` or ``(channels, *size)`` with ``spatial`` dimensions of size, ``R``
    ``(channels / b or 1, b, b)``; returns the shape of ``x``.

    Example:
        >>> rotate_channels(torch.tensor([[[1.0], [0.0]]]), torch.tensor([[[0.0, 1.0], [-1.0, 0.0]]]), spatial=1)
        tensor([[[0.],
                 [1.]]])
    """
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return rotate(x.movedim(1, -1), R).movedim(-1, 1)
    if torch.is_autocast_enabled(x.device.type) and x.dtype is not torch.float64:
        x = x.to(torch.get_autocast_dtype(x.device.type))
    channels = x.dim() - spatial - 1
    if isinstance(R, Operator):
        with torch.autocast(x.device.type, enabled=False):
            columns = x.flatten(channels + 1) if spatial else x.unsqueeze(-1)
            return R.mT.left(columns, _block_product).reshape(x.shape)
    with torch.autocast(x.device.type, enabled=False):
        blocks = x.unflatten(channels, (x.shape[channels] // R.shape[-1], R.shape[-1]))
        blocks = blocks.flatten(channels + 2) if spatial else blocks.unsqueeze(-1)
        return (R.mT.to(x.dtype) @ blocks).reshape(x.shape)


def rotate_stack(W: Tensor, R: Tensor | Operator) -> Tensor:
    """:func:`rotate` for a matrix or a stack of matrices, each with its own blocks.

    Shapes: ``W`` ``(..., rows, n)``, ``R`` ``(..., n / b or 1, b, b)`` with the same leading dimensions.
    """
    if W.dim() == 2 or isinstance(R, Operator):
        return rotate(W, R)
    blocks = W.unflatten(-1, (W.shape[-1] // R.shape[-1], R.shape[-1])).transpose(-3, -2)
    return (blocks @ R.to(W.dtype)).transpose(-3, -2).flatten(-2)


def rotate_rows(W: Tensor, R: Tensor | Operator) -> Tensor:
    """``BD(R) W``: each run of ``b`` rows times its block from the left.

    Shapes: ``W`` ``(..., n, columns)``, ``R`` ``(..., n / b or 1, b, b)``; returns ``(..., n, columns)``.

    Example:
        >>> rotate_rows(torch.tensor([[1.0], [0.0]]), torch.tensor([[[0.0, -1.0], [1.0, 0.0]]]))
        tensor([[0.],
                [1.]])
    """
    if isinstance(R, Operator):
        return R.left(W, _block_product)
    blocks = W.unflatten(-2, (W.shape[-2] // R.shape[-1], R.shape[-1]))
    return (R.to(W.dtype) @ blocks).flatten(-3, -2)
