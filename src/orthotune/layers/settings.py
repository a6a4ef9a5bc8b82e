"""What one adapter asks of one layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from orthotune.kernels.from_parameters import NeumannSeries, RotationMap

Side = Literal["in", "out"]


@dataclass(frozen=True)
class LayerSettings:
    """Settings of an adapter at one layer, sizes already chosen for it.

    ``r`` blocks or blocks of ``block_size``: exactly one of them is not 0. ``fallback`` says what happens to a size
    that does not divide. The other fields have the meaning of :class:`orthotune.OFTConfig`'s.
    """

    layer: str
    r: int = 0
    block_size: int = 32
    fallback: Literal["error", "nearest"] = "nearest"
    side: Side = "in"
    shared: bool = False
    magnitude: bool = False
    scaled: bool = False
    exact: bool = True
    terms: int = 5
    series: NeumannSeries = "current"
    eps: float | None = None
    dropout: float = 0.0
    init_weights: bool = True

    def map_for(self, block_size: int) -> RotationMap:
        """The map from parameters to rotations for blocks of ``block_size``."""
        return RotationMap(block_size, self.exact, self.terms, self.series, self.scaled, self.eps)
