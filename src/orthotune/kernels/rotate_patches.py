"""A convolution of rotated patches: the patches are unfolded, rotated and multiplied in tiles, the kernel stays.

The gradient of the rotation comes from the same tiles, so that no gradient of the kernel's size is ever computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import conv1d, conv2d, conv3d

from orthotune.kernels.autograd import gradients_again

#: numbers of unfolded patches that are worked on at once
TILE = 1 << 20
_CONVOLUTIONS: tuple[Any, ...] = (conv1d, conv2d, conv3d)


class Geometry(NamedTuple):
    """Where the patches of an input are that is padded already; one number for each dimension of an image."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def positions(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Size of the output for an input of ``size``."""
        steps = zip(size, self.kernel, self.stride, self.dilation, strict=True)
        return tuple((n - dilation * (kernel - 1) - 1) // stride + 1 for n, kernel, stride, dilation in steps)


class _Tile(NamedTuple):
    """One image of a batch, and a run of rows of its output."""

    image: int
    rows: slice
    #: positions in these rows
    patches: int


def _tiles(x: Tensor, shape: Geometry) -> Iterator[_Tile]:
    positions = shape.positions(tuple(x.shape[2:]))
    each = math.prod(positions[1:])
    high = max(TILE // max(x.shape[1] * math.prod(shape.kernel) * each, 1), 1)
    for image in range(x.shape[0]):
        for top in range(0, positions[0], high):
            rows = slice(top, min(top + high, positions[0]))
            yield _Tile(image, rows, (rows.stop - rows.start) * each)


def _patches(x: Tensor, tile: _Tile, shape: Geometry) -> Tensor:
    """The patches of a tile ``(channels * kernel, count)``, in the order of a kernel's weights."""
    image = x[tile.image]
    strides = image.stride()[1:]
    across = [dilation * own for dilation, own in zip(shape.dilation, strides, strict=True)]
    along = [stride * own for stride, own in zip(shape.stride, strides, strict=True)]
    positions = shape.positions(tuple(image.shape[1:]))
    view = image.as_strided(
        (image.shape[0], *shape.kernel, tile.rows.stop - tile.rows.start, *positions[1:]),
        (image.stride(0), *across, *along),
        image.storage_offset() + tile.rows.start * along[0],
    )
    return view.reshape(-1, tile.patches)


def _add_patches(into: Tensor, patches: Tensor, tile: _Tile, shape: Geometry) -> None:
    """Add patches ``(channels * kernel, count)`` to the places of ``into`` that they were taken from."""
    image = into[tile.image]
    positions = shape.positions(tuple(image.shape[1:]))
    values = patches.view(image.shape[0], -1, tile.rows.stop - tile.rows.start, *positions[1:])
    starts = [tile.rows.start, *(0 for _ in positions[1:])]
    counts = values.shape[2:]
    for number in range(values.shape[1]):
        rest, window = number, []
        for axis in reversed(range(len(counts))):
            rest, point = divmod(rest, shape.kernel[axis])
            step = shape.stride[axis]
            first = starts[axis] * step + point * shape.dilation[axis]
            window.append(slice(first, first + (counts[axis] - 1) * step + 1, step))
        image[(slice(None), *reversed(window))].add_(values[:, number])


def _blocks(patches: Tensor, R: Tensor, shape: Geometry) -> Tensor:
    """``(groups, blocks, b, count)`` of patches ``(channels * kernel, count)``."""
    return patches.view(shape.groups, -1, R.shape[-1], patches.shape[-1])


class _ConvolvePatches(torch.autograd.Function):
    """Keeps the padded input, the kernel, which the layer holds anyway, and the rotation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, R: Tensor, shape: Geometry, known: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, W, R)
        ctx.shape = shape
        if known is not None:
            return known.view_as(known)
        positions = shape.positions(tuple(x.shape[2:]))
        out = x.new_empty(x.shape[0], W.shape[0], *positions)
        weight, factor = W.reshape(shape.groups, -1, W[0].numel()), R.mT.to(x.dtype)
        for tile in _tiles(x, shape):
            rotated = factor @ _blocks(_patches(x, tile, shape), R, shape)
            found = weight @ rotated.flatten(1, 2)
            out[tile.image, :, tile.rows].copy_(found.view(W.shape[0], -1, *positions[1:]))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, W, R = ctx.saved_tensors
        shape, (need_x, need_W, need_R) = ctx.shape, ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():
            needed = ctx.needs_input_grad[:3]
            again = gradients_again(lambda x, W, R: [convolve_plain(x, W, R, shape)], (x, W, R), [grad], needed)
            return *again, None, None
        wide = torch.promote_types(x.dtype, torch.float32)
        dx = torch.zeros(x.shape, dtype=wide, device=x.device) if need_x else None
        dW = torch.zeros(W.shape, dtype=wide, device=x.device) if need_W else None
        dR = torch.zeros_like(R) if need_R else None
        weight, factor = W.reshape(shape.groups, -1, W[0].numel()), R.to(x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            for tile in _tiles(x, shape):
                g = grad[tile.image, :, tile.rows].reshape(shape.groups, -1, tile.patches)
                D = _blocks((weight.mT @ g).flatten(0, 1), R, shape)
                if need_R or need_W:
                    own = _blocks(_patches(x, tile, shape), R, shape)
                if dR is not None:
                    dR += (own @ D.mT).sum(0 if len(dR) > 1 else (0, 1), dtype=dR.dtype)
                if dW is not None:
                    dW += (g @ (factor.mT @ own).flatten(1, 2).mT).view(W.shape)
                if dx is not None:
                    _add_patches(dx, (factor @ D).view(-1, tile.patches), tile, shape)
        return None if dx is None else dx.to(x.dtype), None if dW is None else dW.to(W.dtype), dR, None, None


def convolve_plain(x: Tensor, W: Tensor, R: Tensor, shape: Geometry) -> Tensor:
    """:func:`convolve_patches` with a rotated kernel, in plain operations.

    Example:
        >>> shape = Geometry((1,), (1,), (1,), 1)
        >>> convolve_plain(torch.ones(1, 2, 3), torch.ones(4, 2, 1), torch.eye(2)[None], shape).shape
        torch.Size([1, 4, 3])
    """
    blocks = W.flatten(1).unflatten(1, (-1, R.shape[-1])).transpose(0, 1)
    rotated = (blocks @ R.mT.to(W.dtype)).transpose(0, 1).reshape(W.shape)
    function = _CONVOLUTIONS[len(shape.kernel) - 1]
    found: Tensor = function(x, rotated, None, shape.stride, 0, shape.dilation, shape.groups)
    return found


def convolve_patches(x: Tensor, W: Tensor, R: Tensor, shape: Geometry, known: Tensor | None = None) -> Tensor:
    """The convolution of ``x`` by ``W`` with each patch ``p`` of ``in / groups * kernel`` numbers as ``p BD(R)``.

    Args:
        x: padded already, ``(batch, in, *size)``.
        W: ``(out, in / groups, *kernel)``.
        R: ``(in / groups * kernel / b, b, b)``, or ``(1, b, b)`` for one shared block.
        shape: of the patches.
        known: the result, where it is known and only its gradients are missing.

    Returns:
        ``(batch, out, *positions)`` in the dtype of ``x``, or in autocast's where that is on. Patches are rotated in
        that dtype, too; gradients are summed in float32 or better.

    Example:
        >>> shape = Geometry((2,), (1,), (1,), 1)
        >>> swap = torch.tensor([[[0.0, 1.0], [-1.0, 0.0]]])
        >>> convolve_patches(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[[1.0, 0.0]]]), swap, shape)
        tensor([[[-2., -3.]]])
    """
    if min(shape.positions(tuple(x.shape[2:]))) < 1:
        return convolve_plain(x, W, R, shape)  # torch refuses an image that is smaller than the kernel
    device = x.device.type
    if torch.is_autocast_enabled(device):
        if x.dtype is not torch.float64:
            x, W = (one.to(torch.get_autocast_dtype(device)) for one in (x, W))
        with torch.autocast(device, enabled=False):
            return convolve_patches(x, W, R, shape, known)
    found: Tensor = _ConvolvePatches.apply(x.contiguous(), W, R, shape, known)
    return found
