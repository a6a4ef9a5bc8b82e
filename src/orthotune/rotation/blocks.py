"""How a dimension is cut into rotation blocks."""

from __future__ import annotations

from dataclasses import dataclass

from orthotune.errors import BlockSizeError
from orthotune.rotation.packing import element_count


def divisors(features: int) -> list[int]:
    """All divisors of ``features``, ascending.

    Example:
        >>> divisors(12)
        [1, 2, 3, 4, 6, 12]
    """
    small = [d for d in range(1, int(features**0.5) + 1) if features % d == 0]
    return sorted({*small, *(features // d for d in small)})


def nearest_divisor(features: int, wanted: int) -> int:
    """PEFT's rule for a size that does not divide: the nearest divisor, the smaller one on a tie.

    Example:
        >>> nearest_divisor(100, 32)
        25
    """
    return min(divisors(features), key=lambda d: (abs(d - wanted), d))


@dataclass(frozen=True)
class BlockLayout:
    """``block_count`` blocks of ``block_size`` along one dimension, one stored block for all when ``shared``."""

    block_size: int
    block_count: int
    shared: bool = False

    @property
    def features(self) -> int:
        """Number of features that are rotated."""
        return self.block_size * self.block_count

    @property
    def rows(self) -> int:
        """Blocks that are stored."""
        return 1 if self.shared else self.block_count

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the packed parameter."""
        return self.rows, element_count(self.block_size)


def choose_layout(
    features: int, *, r: int, block_size: int, shared: bool, fallback: str, layer: str
) -> tuple[BlockLayout, bool]:
    """Layout of ``features`` for ``r`` blocks or for blocks of ``block_size`` (the other one is 0).

    Returns the layout and whether the wanted size had to give way (only with ``fallback="nearest"``).

    Raises:
        BlockSizeError: the size does not divide and ``fallback="error"``, or the blocks would have size 1.

    Example:
        >>> choose_layout(24, r=4, block_size=0, shared=False, fallback="error", layer="q")[0].block_size
        6
    """
    name, wanted = ("r", r) if r else ("block_size", block_size)
    exact = wanted <= features and features % wanted == 0
    if not exact and fallback == "error":
        near = sorted(divisors(features), key=lambda d: (abs(d - wanted), d))
        near = [d for d in near if (d > 1 if name == "block_size" else d < features)][:3]
        raise BlockSizeError(
            f"{name}={wanted} does not divide the {features} features of layer '{layer}'",
            needed=f"one of {near} (the nearest that do)",
            do="Pass one of them, give this layer its own size in block_size_pattern or rank_pattern, exclude the "
            'layer, or set block_size_fallback="nearest"',
        )
    found = wanted if exact else nearest_divisor(features, min(wanted, features))
    size = features // found if r else found
    if size < 2:
        raise BlockSizeError(
            f"{name}={wanted} for layer '{layer}'",
            got=f"blocks of size 1 in {features} features, which cannot be rotated",
            needed="blocks of at least 2",
            do="Pass a smaller r or a larger block size, or exclude the layer",
        )
    return BlockLayout(size, features // size, shared), not exact
