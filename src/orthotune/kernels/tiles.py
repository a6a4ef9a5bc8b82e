"""How the kernels for GPUs are cut, and what each cut needs of a card: facts that need neither Triton nor a GPU.

The numbers are those that compile without a spilled register on every architecture of ``cards.CARDS``
(``benchmarks/gpu_static.py`` prints them, ``make test-gpu-static`` holds them).
"""

from __future__ import annotations

from typing import NamedTuple

#: the largest block whose Cayley map, forward and backward, one program holds in registers
LARGEST_CAYLEY = 32
#: the largest block whose gradient is made in the same pass as the input's
LARGEST_FUSED = 64
#: the largest block for which that pass makes the gradients of several rotations of one input
LARGEST_TOGETHER = 32
#: rotations of one input whose gradients are made together
MOST_TOGETHER = 3
#: the largest block that is rotated by a kernel of ours
LARGEST_ROTATED = 256
#: the number of features of which a block must have a multiple for several to be read at once
ALIGNED = 16
#: rows whose part of a rotation's gradient one program sums
CHUNK = 1024


class Tiles(NamedTuple):
    """One kernel's cut: rows, columns and the inner dimension of a tile, and what runs it.

    ``shared`` is the most shared memory, in bytes, that a block of threads needs on any architecture.
    """

    rows: int
    columns: int
    inner: int
    warps: int
    stages: int
    shared: int


def width(block_size: int) -> int:
    """The power of two, at least 16, that holds a block.

    Example:
        >>> width(8), width(48)
        (16, 64)
    """
    return max(16, 1 << (block_size - 1).bit_length())


def cayley_tiles(block_size: int) -> Tiles:
    """Of the Cayley map and of the inverse of a small matrix, one program a block."""
    side = width(block_size)
    return Tiles(side, side, side, 1 if side == 16 else 2, 1, 4 * 4 * side * side)


def rotate_tiles(item_size: int, block_size: int) -> Tiles:
    """Of ``x BD(R)`` for numbers of ``item_size`` bytes."""
    side = min(64, width(block_size))
    inner = side if item_size == 2 else 16
    # In float32 64 rows spill on sm_120 where a block has 64 features, and on sm_90 where it has 8; 32 rows spill on
    # sm_80 where the features of larger blocks are read one by one.
    rows = 64
    if item_size == 4 and side != 32:
        rows = 16 if side == 64 and block_size % ALIGNED else 32
    return Tiles(rows, side, inner, 4, 2, 48 << 10)


def tokens_tiles(item_size: int, block_size: int) -> Tiles:
    """Of the rotation of tokens by slot: few rows, of which a step of decoding has no more."""
    return rotate_tiles(item_size, block_size)._replace(rows=16)


def input_gradient_tiles(item_size: int, block_size: int) -> Tiles:
    """Of the gradient of the input of several rotations: fewer rows in float32, of which three would spill on sm_80.

    Blocks of 17 to 31 features have the fewest: two rotations of 32 rows would spill on sm_89. In 16 bits those above
    32 that are read one by one have fewer, of which three would spill on gfx1100.
    """
    tiles = rotate_tiles(item_size, block_size)
    if item_size == 2:
        return tiles._replace(rows=32) if block_size > 32 and block_size % ALIGNED else tiles
    return tiles._replace(rows=16 if _between(block_size) else 32)


def _between(block_size: int) -> bool:
    """Whether a block has 17 to 31 features: they are read one by one, and fill most of a tile of 32."""
    return width(block_size) == 32 and block_size % ALIGNED > 0


def backward_tiles(item_size: int, block_size: int) -> Tiles:
    """Of the pass that makes the gradients of the input and of the rotations, up to ``LARGEST_FUSED``."""
    side = width(block_size)
    if item_size == 2:
        return Tiles(32, side, 32, 8 if side == 64 else 4, 2, 48 << 10)
    # Four warps would spill on sm_90 and sm_100 where a block has 17 to 31 features, and where it has 33 to 63.
    warps = 8 if side == 64 and block_size % ALIGNED else 2 if _between(block_size) else 4
    return Tiles(16, side, 16, warps, 2, 48 << 10)


def features_tiles(item_size: int) -> Tiles:
    """Of the gradient of a larger block's rotation."""
    rows = 32 if item_size == 2 else 16
    return Tiles(rows, 64, rows, 4, 2, 48 << 10)


def shared_memory(operation: str, item_size: int, block_size: int) -> int:
    """Bytes of shared memory that the kernels of an operation need, forward and backward, at most.

    Args:
        operation: ``"from_parameters"``, ``"rotate"`` or ``"rotate_tokens"``.
        item_size: bytes of a number.
        block_size: size of a block.

    Example:
        >>> shared_memory("rotate", 2, 128) <= 48 << 10
        True
    """
    if operation == "from_parameters":
        return cayley_tiles(min(block_size, LARGEST_CAYLEY)).shared
    if operation == "rotate_tokens":
        return tokens_tiles(item_size, block_size).shared
    back = backward_tiles(item_size, block_size) if block_size <= LARGEST_FUSED else features_tiles(item_size)
    return max(rotate_tiles(item_size, block_size).shared, back.shared)


def fused(item_size: int, block_size: int, times: int) -> bool:
    """Whether one pass makes the gradients of the input and of ``times`` rotations of it.

    Several rotations in float32 would spill registers on sm_120, three of 17 to 31 features in 16 bits on gfx1100.

    Example:
        >>> fused(2, 32, 3), fused(2, 64, 1), fused(2, 64, 3), fused(4, 32, 2)
        (True, True, False, False)
    """
    if times == 1:
        # 33 to 63 features in 16 bits, read one by one, would spill on gfx1100.
        return block_size <= LARGEST_FUSED and (item_size > 2 or block_size <= 32 or block_size % ALIGNED == 0)
    return item_size == 2 and block_size <= LARGEST_TOGETHER and (times == 2 or not _between(block_size))
