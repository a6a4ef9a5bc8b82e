"""Rotating inputs on a GPU: forward, and a backward that makes ``dX`` and ``dR`` from one pass over ``(x, dY)``."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

#: the fused backward keeps a block of dR in registers
LARGEST_FUSED = 64
ROWS = 64
CHUNK = 1024


@triton.jit
def _dot(a, b, WIDE: tl.constexpr):
    """Product with float32 sums; ``WIDE`` for the interpreter, which cannot multiply bfloat16."""
    if WIDE:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _rotate(x, R, y, rows, n, b, R_row, R_col, R_block, K: tl.constexpr, N: tl.constexpr, M: tl.constexpr,
            WIDE: tl.constexpr):  # fmt: skip
    """A tile of ``M`` rows x ``N`` columns of one block; ``R_block`` is 0 when all blocks share one."""
    block = tl.program_id(1)
    t = tl.program_id(0) * M + tl.arange(0, M)[:, None]
    j = tl.program_id(2) * N + tl.arange(0, N)[None, :]
    total = tl.zeros((M, N), dtype=tl.float32)
    for start in range(0, b, K):
        k = start + tl.arange(0, K)
        a = tl.load(x + t.to(tl.int64) * n + block * b + k[None, :], mask=(t < rows) & (k[None, :] < b), other=0.0)
        r = tl.load(R + block * R_block + k[:, None] * R_row + j * R_col, mask=(k[:, None] < b) & (j < b), other=0.0)
        total += _dot(a, r.to(a.dtype), WIDE)
    tl.store(y + t.to(tl.int64) * n + block * b + j, total.to(y.dtype.element_ty), mask=(t < rows) & (j < b))


@triton.jit
def _backward(x, g, R, dx, dR, rows, n, b, R_block, WITH_DX: tl.constexpr, B: tl.constexpr, M: tl.constexpr,
              CHUNK: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    """``dX`` of one chunk of rows, and that chunk's part of ``dR``."""
    chunk = tl.program_id(0)
    block = tl.program_id(1)
    i = tl.arange(0, B)
    inside = (i[:, None] < b) & (i[None, :] < b)
    r = tl.load(R + block * R_block + i[None, :] * b + i[:, None], mask=inside, other=0.0)  # transposed
    total = tl.zeros((B, B), dtype=tl.float32)
    for start in range(0, CHUNK, M):
        t = chunk * CHUNK + start + tl.arange(0, M)[:, None]
        place = t.to(tl.int64) * n + block * b + i[None, :]
        here = (t < rows) & (i[None, :] < b)
        a = tl.load(x + place, mask=here, other=0.0)
        d = tl.load(g + place, mask=here, other=0.0)
        total += _dot(tl.trans(a), d, WIDE)
        if WITH_DX:
            back = _dot(d, r.to(d.dtype), WIDE)
            tl.store(dx + place, back.to(dx.dtype.element_ty), mask=here)
    part = (chunk * tl.num_programs(1) + block).to(tl.int64)
    tl.store(dR + part * b * b + i[:, None] * b + i[None, :], total, mask=inside)


@triton.jit
def _features(x, g, dR, rows, n, b, N: tl.constexpr, M: tl.constexpr, WIDE: tl.constexpr):
    """One ``N`` x ``N`` tile of ``x_i^T g_i`` of one block, over all rows."""
    tiles = tl.cdiv(b, N)
    block = tl.program_id(0)
    i = (tl.program_id(1) // tiles) * N + tl.arange(0, N)
    j = (tl.program_id(1) % tiles) * N + tl.arange(0, N)
    total = tl.zeros((N, N), dtype=tl.float32)
    for start in range(0, rows, M):
        t = (start + tl.arange(0, M)).to(tl.int64)[:, None]
        a = tl.load(x + t * n + block * b + i[None, :], mask=(t < rows) & (i[None, :] < b), other=0.0)
        d = tl.load(g + t * n + block * b + j[None, :], mask=(t < rows) & (j[None, :] < b), other=0.0)
        total += _dot(tl.trans(a), d, WIDE)
    inside = (i[:, None] < b) & (j[None, :] < b)
    tl.store(dR + block * b * b + i[:, None] * b + j[None, :], total, mask=inside)


def _width(block_size: int) -> int:
    return max(16, triton.next_power_of_2(block_size))


def _wide(x: Tensor) -> bool:
    return x.device.type == "cpu"


def rotate_forward(x: Tensor, R: Tensor) -> Tensor:
    """``x BD(R)``: ``x`` ``(rows, n)``, ``R`` ``(n / b or 1, b, b)`` float32 with any strides; one launch."""
    rows, n = x.shape
    b = R.shape[-1]
    y = torch.empty_like(x)
    tile = min(64, _width(b))
    grid = (triton.cdiv(rows, ROWS), n // b, triton.cdiv(b, tile))
    step = R.stride(0) if R.shape[0] > 1 else 0
    _rotate[grid](x, R, y, rows, n, b, R.stride(-2), R.stride(-1), step, K=tile, N=tile, M=ROWS,
                  WIDE=_wide(x))  # fmt: skip
    return y


def rotate_backward(
    x: Tensor, R: Tensor, grad: Tensor, need_dx: bool, need_dR: bool
) -> tuple[Tensor | None, Tensor | None]:
    """``(dX, dR)`` of :func:`rotate_forward`; ``dR`` float32, summed over the blocks when one is shared.

    Blocks of up to 64 take one launch for both; larger ones take one for each.
    """
    rows, n = x.shape
    b, count = R.shape[-1], n // R.shape[-1]
    if not need_dR:
        return rotate_forward(grad, R.mT), None
    if b > LARGEST_FUSED:
        dR = torch.empty(count, b, b, dtype=torch.float32, device=x.device)
        _features[(count, triton.cdiv(b, 64) ** 2)](x, grad, dR, rows, n, b, N=64, M=32,
                                                          WIDE=_wide(x))  # fmt: skip
        dx = rotate_forward(grad, R.mT) if need_dx else None
    else:
        chunks = triton.cdiv(rows, CHUNK)
        parts = torch.empty(chunks, count, b, b, dtype=torch.float32, device=x.device)
        dx = torch.empty_like(x) if need_dx else None
        step = b * b if R.shape[0] > 1 else 0
        _backward[(chunks, count)](
            x, grad, R.contiguous(), x if dx is None else dx, parts, rows, n, b, step,
            WITH_DX=need_dx, B=_width(b), M=ROWS, CHUNK=CHUNK, WIDE=_wide(x),
        )  # fmt: skip
        dR = parts.sum(0)  # a sum in a fixed order: the same gradient at every run
    return dx, dR if R.shape[0] > 1 else dR.sum(0, keepdim=True)
