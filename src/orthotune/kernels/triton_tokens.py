"""Rotating tokens of several adapters on a GPU, each by the slot that the device alone knows: one pass, any batch."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from orthotune.kernels.tiles import tokens_tiles
from orthotune.kernels.triton_rotate import _dot


@triton.jit(do_not_specialize=["slots"])
def _rotate_tokens(x, index, blocks, y, rows, n, b, slots, slot_step, K: tl.constexpr, N: tl.constexpr,
                   M: tl.constexpr, WIDE: tl.constexpr):  # fmt: skip
    """A tile of ``M`` tokens x ``N`` columns of one block: a product for each slot that a token of the tile has.

    Rows of other slots are zeros in it, which add nothing: a token's result does not depend on its neighbours.
    """
    block = tl.program_id(1)
    t = tl.program_id(0) * M + tl.arange(0, M)
    j = tl.program_id(2) * N + tl.arange(0, N)[None, :]
    own = tl.load(index + t, mask=t < rows, other=-1)
    t = t.to(tl.int64)[:, None]
    total = tl.zeros((M, N), dtype=tl.float32)
    blocks += block * b * b
    for slot in range(slots):
        mine = own == slot
        if tl.max(mine.to(tl.int32), 0) > 0:
            for start in range(0, b, K):
                k = start + tl.arange(0, K)
                a = tl.load(x + t * n + block * b + k[None, :], mask=mine[:, None] & (k[None, :] < b), other=0.0)
                r = tl.load(blocks + k[:, None] * b + j, mask=(k[:, None] < b) & (j < b), other=0.0)
                total += _dot(a, r.to(a.dtype), WIDE)
        blocks += slot_step
    here = (t < rows) & (j < b)
    place = t * n + block * b + j
    before = tl.load(x + place, mask=here, other=0.0)
    changed = (before.to(tl.float32) + total).to(y.dtype.element_ty)
    tl.store(y + place, tl.where(((own >= 0) & (own < slots))[:, None], changed, before), mask=here)


def rotate_tokens(x: Tensor, blocks: Tensor, index: Tensor) -> Tensor:
    """``x + x blocks[slot]``, the product and the sum in float32, rounded once.

    Shapes: ``x`` ``(tokens, n)``, ``blocks`` ``(slots, n / b, b, b)``, ``index`` ``(tokens,)`` of any integers; returns
    ``(tokens, n)``.

    Args:
        x: all tokens.
        blocks: the differences to the identity.
        index: slot of each token; a token whose number is no slot stays as it is.
    """
    x, blocks, index = x.contiguous(), blocks.contiguous(), index.contiguous()
    rows, n = x.shape
    slots, count, b = blocks.shape[:3]
    y = x.new_empty(rows, n)
    tiles = tokens_tiles(x.element_size(), b)
    grid = (triton.cdiv(rows, tiles.rows), count, triton.cdiv(b, tiles.columns))
    _rotate_tokens[grid](
        x, index, blocks, y, rows, n, b, slots, count * b * b, K=tiles.inner, N=tiles.columns, M=tiles.rows,
        WIDE=x.device.type == "cpu", num_warps=tiles.warps, num_stages=tiles.stages,
    )  # fmt: skip
    return y
