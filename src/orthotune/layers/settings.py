"""What one adapter asks of one layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from orthotune.rotation.frozen import FrozenMap
from orthotune.rotation.spec import RotationSpec


@dataclass(frozen=True)
class LayerSettings:
    """What an adapter is at one layer, and how its size is chosen there.

    Args:
        layer: its name, for messages.
        spec: what it is; its block size is the wanted one, 0 when ``r`` decides. A layer keeps the chosen size here.
        r: wanted number of blocks.
        fallback: what happens to a size that does not divide the width of the layer.
        init_weights: True starts from the identity, False from random rotations.
        frozen: a map of the weight in the place of a rotation; of the spec its side has a meaning then.
    """

    layer: str
    spec: RotationSpec
    r: int = 0
    fallback: Literal["error", "nearest"] = "nearest"
    init_weights: bool = True
    frozen: FrozenMap | None = None
