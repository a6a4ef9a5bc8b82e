"""Parameters to rotations on a GPU: unpacking and the exact Cayley map in one launch, and its backward in another.

One program holds one block in registers. With ``S = -Q^2``, whose eigenvalues lie in ``[0, s]``, and ``c = 1 + s / 2``,
``E = I - (I + S) / c`` has a norm of at most ``(s / 2) / c < 1``, so ``(I + Q)^{-1} = (I - Q)(I + E)(I + E^2)(I +
E^4).. / c`` converges for every ``Q``; the number of factors follows from ``s``, in the kernel, so that nothing waits
for the host.

Larger blocks are for ``by_blocks``, whose smallest inverses are made here.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from orthotune.kernels.tiles import cayley_tiles


@triton.jit
def _packed(v, row, i, j, b, n):
    """Entry (i, j) of the skew matrix, from the packed strict upper triangle."""
    low = tl.minimum(i, j)
    high = tl.maximum(i, j)
    offset = low * b - low * (low + 1) // 2 + high - low - 1
    value = tl.load(v + row * n + offset, mask=(low < high) & (high < b), other=0.0).to(tl.float32)
    return tl.where(i < j, value, -value)


@triton.jit
def _forward(v, R, b, n, scale, B: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, B)[:, None]
    j = tl.arange(0, B)[None, :]
    eye = (i == j).to(tl.float32)
    Q = _packed(v, row, i, j, b, n) * scale
    S = -tl.dot(Q, Q, input_precision="ieee")
    # Eigenvalues of S come in pairs: the Frobenius norm is at least sqrt(2) times the largest.
    s = tl.sqrt(tl.sum(S * S) * 0.5)
    c = 1.0 + 0.5 * s
    power = eye - (eye + S) / c
    A = eye + power
    left = 0.5 * s / c
    left = left * left
    while left > 3e-8:
        power = tl.dot(power, power, input_precision="ieee")
        A += tl.dot(A, power, input_precision="ieee")
        left = left * left
    A = tl.dot(eye - Q, A, input_precision="ieee") / c
    rotated = 2.0 * A - eye
    # One Newton step: the rounding of many factors grows with the block.
    gram = tl.dot(tl.trans(rotated), rotated, input_precision="ieee")
    rotated = 1.5 * rotated - 0.5 * tl.dot(rotated, gram, input_precision="ieee")
    tl.store(R + row * b * b + i * b + j, rotated, mask=(i < b) & (j < b))


@triton.jit
def _backward(R, dR, dv, b, n, scale, B: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, B)[:, None]
    j = tl.arange(0, B)[None, :]
    inside = (i < b) & (j < b)
    place = row * b * b + i * b + j
    rotated = tl.load(R + row * b * b + j * b + i, mask=inside, other=0.0) + (i == j).to(tl.float32)
    G = tl.load(dR + place, mask=inside, other=0.0).to(tl.float32)
    dQ = tl.dot(tl.dot(rotated, G, input_precision="ieee"), rotated, input_precision="ieee")
    skew = (tl.trans(dQ) - dQ) * (0.5 * scale)
    offset = i * b - i * (i + 1) // 2 + j - i - 1
    tl.store(dv + row * n + offset, skew, mask=(i < j) & inside)


@triton.jit
def _inverse(A, out, n, B: tl.constexpr):
    """Gauss-Jordan elimination without pivots: right where the symmetric part is at least the identity."""
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, B)[:, None]
    j = tl.arange(0, B)[None, :]
    inside = (i < n) & (j < n)
    a = tl.load(A + row * n * n + i * n + j, mask=inside, other=0.0)
    for k in range(0, n):
        across = tl.sum(tl.where(i == k, a, 0.0), axis=0)[None, :]
        down = tl.sum(tl.where(j == k, a, 0.0), axis=1)[:, None]
        pivot = tl.sum(tl.where((i == k) & (j == k), a, 0.0))
        across = tl.where(j == k, 1.0, across) / pivot
        rest = tl.where(j == k, 0.0, a) - down * across
        a = tl.where(i == k, across, rest)
    tl.store(out + row * n * n + i * n + j, a, mask=inside)


def exact_forward(v: Tensor, block_size: int, scale: float = 1.0) -> Tensor:
    """``cayley(unpack(scale * v))``: ``(rows, n)`` of any float type -> ``(rows, b, b)`` float32, one launch.

    Blocks of up to ``tiles.LARGEST_CAYLEY``. Source: see the module's head.
    """
    rows, elements = v.shape
    R = torch.empty(rows, block_size, block_size, dtype=torch.float32, device=v.device)
    if rows:
        tiles = cayley_tiles(block_size)
        _forward[(rows,)](
            v.contiguous(), R, block_size, elements, scale, B=tiles.columns, num_warps=tiles.warps,
            num_stages=tiles.stages,
        )  # fmt: skip
    return R


def exact_backward(R: Tensor, dR: Tensor, scale: float = 1.0) -> Tensor:
    """Gradient ``(rows, n)`` float32 of the stored parameters from ``R`` and ``dR`` ``(rows, b, b)``, one launch."""
    rows, block_size = R.shape[0], R.shape[-1]
    elements = block_size * (block_size - 1) // 2
    dv = torch.empty(rows, elements, dtype=torch.float32, device=R.device)
    if rows:
        tiles = cayley_tiles(block_size)
        _backward[(rows,)](
            R.contiguous(), dR.contiguous(), dv, block_size, elements, scale, B=tiles.columns, num_warps=tiles.warps,
            num_stages=tiles.stages,
        )  # fmt: skip
    return dv


def small_inverse(A: Tensor) -> Tensor:
    """Inverses of matrices whose symmetric part is at least the identity, of up to ``tiles.LARGEST_CAYLEY`` rows.

    Shapes: ``(count, n, n)`` -> ``(count, n, n)``, float32; one launch.
    """
    A = A.contiguous()
    count, n = A.shape[:2]
    out = torch.empty_like(A)
    if count:
        tiles = cayley_tiles(n)
        _inverse[(count,)](A, out, n, B=tiles.columns, num_warps=tiles.warps, num_stages=tiles.stages)
    return out
