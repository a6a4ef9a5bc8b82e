"""The settings of one adapter for one layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from orthotune.rotation.frozen import FrozenMap
from orthotune.rotation.spec import RotationSpec
from orthotune.rotation.strength import FULL, Strength


@dataclass(frozen=True)
class LayerSettings:
    """The spec of an adapter at one layer, and how the layer makes it.

    Args:
        layer: name of the layer, for messages.
        spec: the transform; a ``block_size`` of 0 leaves the size to ``r``.
        r: number of blocks, 0 if the spec has a block size.
        fallback: what happens to a size that does not divide the layer.
        init_weights: start from the identity, otherwise from random rotations.
        frozen: a map of the entire weight that is applied as it is, instead of a trained rotation.

    Example:
        >>> LayerSettings("q_proj", RotationSpec(block_size=8)).spec.side
        'in'
    """

    layer: str
    spec: RotationSpec
    r: int = 0
    fallback: Literal["error", "nearest"] = "nearest"
    init_weights: bool = True
    frozen: FrozenMap | None = None


@dataclass
class Slot:
    """Everything that a layer knows of one adapter, beside its parameters."""

    settings: LayerSettings
    #: how many blocks the layer is rotated with, 0 for a frozen map
    blocks: int = 0
    strength: Strength = FULL
    #: how the wanted block size gave way to the layer's width, None when it did not
    resized: str | None = None
    #: the strength that the adapter was merged at
    merged_at: Strength | None = None
    #: a ``SharedInput``: the layers that get this layer's input, too
    shared: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "shared": None}  # the neighbours of a copy are others


Seen = TypeVar("Seen")


class BySlot(Mapping[str, Seen]):
    """Adapter -> one thing of its slot, always as the slots are now."""

    def __init__(self, slots: Mapping[str, Slot], see: Callable[[Slot], Seen]) -> None:
        self._slots, self._see = slots, see

    def __getitem__(self, adapter: str) -> Seen:
        return self._see(self._slots[adapter])

    def __iter__(self) -> Iterator[str]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def __repr__(self) -> str:
        return repr(dict(self))
