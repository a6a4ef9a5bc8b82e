"""An adapter in memory, whatever file it came from: packed skew vectors and how they become rotations."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from orthotune.rotation.ball import coft_radius, project
from orthotune.rotation.cayley import cayley
from orthotune.rotation.neumann import neumann
from orthotune.rotation.packing import block_size_of, unpack

Side = Literal["in", "out"]
#: ``neumann_legacy`` is the series of PEFT 0.16 and 0.17, ``neumann`` that of 0.18 and later.
Map = Literal["exact", "neumann", "neumann_legacy"]


@dataclass(frozen=True)
class LayerState:
    """What an adapter holds for one layer.

    Shapes:
        rotations: part -> ``[rows, b(b-1)/2]``. A layer with one rotation has the single part ``""``; a packed
            attention has ``q``, ``k``, ``v``. One row stands for all blocks if shared; experts follow each other.
        magnitude: ``[out]``, the trained scale per output neuron, or None.

    ``eps`` is the radius of COFT's ball in PEFT's units, None if the rotation was free. A file may hold vectors from
    after the last optimizer step, outside the ball; its writer projects them before use, and so does ``rotation``.
    """

    rotations: Mapping[str, torch.Tensor]
    side: Side = "in"
    map: Map = "exact"
    terms: int = 5
    shared: bool = False
    scaled: bool = False
    eps: float | None = None
    magnitude: torch.Tensor | None = None
    embedding: bool = False

    def block_size(self, part: str = "") -> int:
        """The size of the blocks of one part."""
        return block_size_of(self.rotations[part].shape[-1])

    def block_count(self, part: str = "") -> int | None:
        """How many blocks the layer turns with; None if they are shared, for only the base model knows then."""
        return None if self.shared else self.rotations[part].shape[-2]

    @property
    def parameters(self) -> int:
        """How many numbers were trained."""
        extra = 0 if self.magnitude is None else self.magnitude.numel()
        return extra + sum(vector.numel() for vector in self.rotations.values())

    def rotation(self, part: str = "") -> torch.Tensor:
        """The rotation blocks that the packed vectors stand for, in float32 or better.

        Shapes:
            returns ``[blocks stored, b, b]``.

        Example:
            >>> LayerState({"": torch.zeros(2, 3)}).rotation().shape
            torch.Size([2, 3, 3])
        """
        size = self.block_size(part)
        vector = self.rotations[part]
        if vector.dtype != torch.float64:
            vector = vector.float()
        if self.scaled:
            vector = vector / (2 * math.sqrt(size - 1))
        if self.eps is not None:
            vector = project(vector, coft_radius(self.eps, vector.shape[0]))
        skew = unpack(vector, size)
        if self.map == "exact":
            return cayley(skew)
        return neumann(skew, self.terms, legacy=self.map == "neumann_legacy")


@dataclass(frozen=True)
class AdapterState:
    """An adapter: its layers by name, everything else that was saved, and the config as it was read.

    Example:
        >>> AdapterState({"lin": LayerState({"": torch.zeros(2, 3)})}).parameters
        6
    """

    layers: Mapping[str, LayerState]
    config: Mapping[str, Any] = field(default_factory=dict)
    other: Mapping[str, torch.Tensor] = field(default_factory=dict)
    source: Path | None = None

    @property
    def parameters(self) -> int:
        """How many numbers were trained, those of ``modules_to_save`` and biases included."""
        return sum(layer.parameters for layer in self.layers.values()) + sum(t.numel() for t in self.other.values())
