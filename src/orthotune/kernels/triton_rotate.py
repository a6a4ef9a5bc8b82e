"""Rotating inputs on a GPU: forward, and a backward that makes ``dX`` and ``dR`` from one pass over ``(x, dY)``.

Several rotations of one input, as those of query, key and value, take one launch: programs beside each other read the
same tile of the input, which then comes from the cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from orthotune.kernels.tiles import (
    CHUNK,
    backward_tiles,
    features_tiles,
    fused,
    input_gradient_tiles,
    rotate_tiles,
    width,
)


@triton.jit
def _dot(a, b, WIDE: tl.constexpr):
    """Product with float32 sums; ``WIDE`` for the interpreter, which cannot multiply bfloat16."""
    if WIDE:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit(do_not_specialize=["times"])
def _rotate(x, R, y, rows, n, b, R_row, R_col, R_block, R_step, times, K: tl.constexpr, N: tl.constexpr,
            M: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    """A tile of ``M`` rows x ``N`` columns of one block and one rotation.

    ``R_block`` is 0 when all blocks share one.
    """
    which = tl.program_id(0) % times
    block = tl.program_id(1)
    t = (tl.program_id(0) // times) * M + tl.arange(0, M)[:, None]
    j = tl.program_id(2) * N + tl.arange(0, N)[None, :]
    R += which * R_step + block * R_block
    total = tl.zeros((M, N), dtype=tl.float32)
    for start in range(0, b, K):
        k = start + tl.arange(0, K)
        a = tl.load(x + t.to(tl.int64) * n + block * b + k[None, :], mask=(t < rows) & (k[None, :] < b), other=0.0)
        r = tl.load(R + k[:, None] * R_row + j * R_col, mask=(k[:, None] < b) & (j < b), other=0.0)
        total += _dot(a, r.to(a.dtype), WIDE)
    place = (which.to(tl.int64) * rows + t) * n + block * b + j
    tl.store(y + place, total.to(y.dtype.element_ty), mask=(t < rows) & (j < b))


@triton.jit
def _backward(x, g0, g1, g2, R, dx, dR, rows, n, b, R_block, R_step, WITH_DX: tl.constexpr, TIMES: tl.constexpr,
              B: tl.constexpr, M: tl.constexpr, CHUNK: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    """``dX`` of one chunk of rows, and that chunk's part of ``dR``, for one to three rotations of one input."""
    chunk = tl.program_id(0)
    block = tl.program_id(1)
    i = tl.arange(0, B)
    inside = (i[:, None] < b) & (i[None, :] < b)
    R += block * R_block + i[None, :] * b + i[:, None]  # transposed
    total0 = tl.zeros((B, B), dtype=tl.float32)
    total1 = tl.zeros((B, B), dtype=tl.float32)
    total2 = tl.zeros((B, B), dtype=tl.float32)
    for start in range(0, CHUNK, M):
        t = chunk * CHUNK + start + tl.arange(0, M)[:, None]
        place = t.to(tl.int64) * n + block * b + i[None, :]
        here = (t < rows) & (i[None, :] < b)
        a = tl.trans(tl.load(x + place, mask=here, other=0.0))
        d = tl.load(g0 + place, mask=here, other=0.0)
        total0 += _dot(a, d, WIDE)
        if WITH_DX:
            back = _dot(d, tl.load(R, mask=inside, other=0.0).to(d.dtype), WIDE)
        if TIMES > 1:
            d = tl.load(g1 + place, mask=here, other=0.0)
            total1 += _dot(a, d, WIDE)
            if WITH_DX:
                back += _dot(d, tl.load(R + R_step, mask=inside, other=0.0).to(d.dtype), WIDE)
        if TIMES > 2:
            d = tl.load(g2 + place, mask=here, other=0.0)
            total2 += _dot(a, d, WIDE)
            if WITH_DX:
                back += _dot(d, tl.load(R + 2 * R_step, mask=inside, other=0.0).to(d.dtype), WIDE)
        if WITH_DX:
            tl.store(dx + place, back.to(dx.dtype.element_ty), mask=here)
    count = tl.num_programs(1).to(tl.int64)
    part = (chunk * TIMES * count + block) * b * b + i[:, None] * b + i[None, :]
    tl.store(dR + part, total0, mask=inside)
    if TIMES > 1:
        tl.store(dR + part + count * b * b, total1, mask=inside)
    if TIMES > 2:
        tl.store(dR + part + 2 * count * b * b, total2, mask=inside)


@triton.jit
def _features(x, g0, g1, g2, dR, rows, n, b, N: tl.constexpr, M: tl.constexpr, WIDE: tl.constexpr):
    """One ``N`` x ``N`` tile of ``x_i^T g_i`` of one block and one rotation, over all rows."""
    tiles = tl.cdiv(b, N)
    which = tl.program_id(0)
    block = tl.program_id(1)
    g = g0
    if which == 1:
        g = g1
    if which == 2:
        g = g2
    i = (tl.program_id(2) // tiles) * N + tl.arange(0, N)
    j = (tl.program_id(2) % tiles) * N + tl.arange(0, N)
    total = tl.zeros((N, N), dtype=tl.float32)
    for start in range(0, rows, M):
        t = (start + tl.arange(0, M)).to(tl.int64)[:, None]
        a = tl.load(x + t * n + block * b + i[None, :], mask=(t < rows) & (i[None, :] < b), other=0.0)
        d = tl.load(g + t * n + block * b + j[None, :], mask=(t < rows) & (j[None, :] < b), other=0.0)
        total += _dot(tl.trans(a), d, WIDE)
    inside = (i[:, None] < b) & (j[None, :] < b)
    place = (which * tl.num_programs(1) + block).to(tl.int64) * b * b
    tl.store(dR + place + i[:, None] * b + j[None, :], total, mask=inside)


@triton.jit
def _added(total, g, R, t, j, rows, n, b, first, K: tl.constexpr, WIDE: tl.constexpr):
    """``total`` and a tile of ``g BD(R)^T``; ``first`` is where the block begins."""
    for start in range(0, b, K):
        k = start + tl.arange(0, K)
        a = tl.load(g + t.to(tl.int64) * n + first + k[None, :], mask=(t < rows) & (k[None, :] < b), other=0.0)
        r = tl.load(R + j * b + k[:, None], mask=(k[:, None] < b) & (j < b), other=0.0)
        total += _dot(a, r.to(a.dtype), WIDE)
    return total


@triton.jit
def _back(g0, g1, g2, R, dx, rows, n, b, R_block, R_step, TIMES: tl.constexpr, K: tl.constexpr, N: tl.constexpr,
          M: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    """A tile of ``dX``, the sum over two or three rotations of one input."""
    block = tl.program_id(1)
    t = tl.program_id(0) * M + tl.arange(0, M)[:, None]
    j = tl.program_id(2) * N + tl.arange(0, N)[None, :]
    R += block * R_block
    total = tl.zeros((M, N), dtype=tl.float32)
    total = _added(total, g0, R, t, j, rows, n, b, block * b, K, WIDE)
    total = _added(total, g1, R + R_step, t, j, rows, n, b, block * b, K, WIDE)
    if TIMES > 2:
        total = _added(total, g2, R + 2 * R_step, t, j, rows, n, b, block * b, K, WIDE)
    place = t.to(tl.int64) * n + block * b + j
    tl.store(dx + place, total.to(dx.dtype.element_ty), mask=(t < rows) & (j < b))


def _wide(x: Tensor) -> bool:
    return x.device.type == "cpu"


def rotate_forward(x: Tensor, R: Tensor, times: int = 1) -> list[Tensor]:
    """``x BD(R_i)`` for each of ``times`` rotations, in one launch.

    Shapes: ``x`` ``(rows, n)``, ``R`` ``(times * n / b or times, b, b)`` float32 with any strides; returns ``times``
    tensors of the shape of ``x``.
    """
    x = x.contiguous()
    rows, n = x.shape
    b, count = R.shape[-1], R.shape[0] // times
    y = x.new_empty(times, rows, n)
    tiles = rotate_tiles(x.element_size(), b)
    grid = (triton.cdiv(rows, tiles.rows) * times, n // b, triton.cdiv(b, tiles.columns))
    _rotate[grid](
        x, R, y, rows, n, b, R.stride(-2), R.stride(-1), R.stride(0) if count > 1 else 0, R.stride(0) * count,
        times, K=tiles.inner, N=tiles.columns, M=tiles.rows, WIDE=_wide(x),
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return list(y.unbind())


def rotate_backward(
    x: Tensor, R: Tensor, grads: Sequence[Tensor], need_dx: bool, need_dR: bool
) -> tuple[Tensor | None, list[Tensor | None]]:
    """``(dX, dR of each rotation)`` of :func:`rotate_forward`; ``dX`` summed in float32 and rounded once.

    ``dR`` is float32, summed over the blocks when one is shared. Small blocks take one launch for all gradients; large
    ones, and several rotations in blocks of more than 32 or in float32, one for the input's and one for the rotations'.

    Args:
        x: the input ``(rows, n)``.
        R: ``(times * n / b or times, b, b)``.
        grads: of the outputs, one for each rotation; how many there may be says ``tiles.MOST_TOGETHER``.
        need_dx: whether the input's gradient is wanted.
        need_dR: whether the rotations' gradients are wanted.
    """
    x, grads, R = x.contiguous(), [grad.contiguous() for grad in grads], R.contiguous()
    times, b = len(grads), R.shape[-1]
    shared = R.shape[0] == times and x.shape[1] > b
    dR: Tensor | None
    if need_dR and fused(x.element_size(), b, times):
        dx, dR = _in_one_pass(x, R, grads, need_dx, shared)
    else:
        dx = _input_gradient(R, grads, shared) if need_dx else None
        dR = _rotation_gradients(x, b, grads) if need_dR else None
    if dR is None:
        return dx, [None] * times
    return dx, [own.sum(0, keepdim=True) if shared else own for own in dR.unbind()]


def _three(grads: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients as a kernel takes them; those that are not there are not read."""
    return grads[0], grads[min(1, len(grads) - 1)], grads[-1]


def _strides(R: Tensor, times: int, shared: bool) -> tuple[int, int]:
    """From a block to the next one and from a rotation to the next one, of a contiguous ``R``."""
    block = R.shape[-1] ** 2
    return (0, block) if shared else (block, R.shape[0] // times * block)


def _in_one_pass(
    x: Tensor, R: Tensor, grads: Sequence[Tensor], need_dx: bool, shared: bool
) -> tuple[Tensor | None, Tensor]:
    rows, n = x.shape
    times, b = len(grads), R.shape[-1]
    tiles = backward_tiles(x.element_size(), b)
    chunks, count = triton.cdiv(rows, CHUNK), n // b
    parts = torch.empty(chunks, times, count, b, b, dtype=torch.float32, device=x.device)
    dx = torch.empty_like(x) if need_dx else None
    _backward[(chunks, count)](
        x, *_three(grads), R, x if dx is None else dx, parts, rows, n, b, *_strides(R, times, shared),
        WITH_DX=need_dx, TIMES=times, B=width(b), M=tiles.rows, CHUNK=CHUNK, WIDE=_wide(x),
        num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return dx, parts.sum(0)  # a sum in a fixed order: the same gradient at every run


def _input_gradient(R: Tensor, grads: Sequence[Tensor], shared: bool) -> Tensor:
    if len(grads) == 1:
        return rotate_forward(grads[0], R.mT)[0]
    rows, n = grads[0].shape
    times, b = len(grads), R.shape[-1]
    dx = torch.empty_like(grads[0])
    tiles = input_gradient_tiles(dx.element_size(), b)
    grid = (triton.cdiv(rows, tiles.rows), n // b, triton.cdiv(b, tiles.columns))
    _back[grid](
        *_three(grads), R, dx, rows, n, b, *_strides(R, times, shared), TIMES=times, K=tiles.inner, N=tiles.columns,
        M=tiles.rows, WIDE=_wide(dx), num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return dx


def _rotation_gradients(x: Tensor, b: int, grads: Sequence[Tensor]) -> Tensor:
    rows, n = x.shape
    times, count, tiles = len(grads), n // b, features_tiles(x.element_size())
    dR = torch.empty(times, count, b, b, dtype=torch.float32, device=x.device)
    _features[(times, count, triton.cdiv(b, tiles.columns) ** 2)](
        x, *_three(grads), dR, rows, n, b, N=tiles.columns, M=tiles.rows, WIDE=_wide(x), num_warps=tiles.warps,
        num_stages=tiles.stages,
    )  # fmt: skip
    return dR
