"""An adapter in memory, whatever file it came from: packed skew vectors and how they become rotations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from orthotune.errors import AdapterFileError
from orthotune.formats.weight_transform import (
    Side,
    Strength,
    WeightTransform,
    blended,
    lifted,
    refuse_misfit,
    rows_scaled,
    turn,
)
from orthotune.rotation.ball import coft_radius, project
from orthotune.rotation.cayley import cayley
from orthotune.rotation.neumann import neumann
from orthotune.rotation.packing import block_size_of, unpack

#: ``neumann_legacy`` is the series of PEFT 0.16 and 0.17, ``neumann`` that of 0.18 and later.
Map = Literal["exact", "neumann", "neumann_legacy"]


@dataclass(frozen=True)
class LayerState:
    """What an adapter holds for one layer that runs as a rotation.

    Shapes:
        rotations: part -> ``[rows, b(b-1)/2]``. A layer with one rotation has the single part ``""``; a packed
            attention has ``q``, ``k``, ``v``. One row stands for all blocks if shared; experts follow each other.
        magnitude: ``[out]``, the trained scale per output neuron, or None.

    ``eps`` is the radius of COFT's ball in PEFT's units, None if the rotation was free. A file may hold vectors from
    after the last optimizer step, outside the ball; its writer projects them before use, and so does ``rotation``.

    Three things hang on the base weight, which the file does not know: with ``conv_reversed`` a weight of more than two
    dimensions turns the other way (OneTrainer, sd-scripts ``oft_v2``); with ``ragged`` the blocks may reach past the
    weight and are cut there (PEFT before 0.14); and a shared block is repeated. ``for_weight`` settles the first,
    ``runs_on`` asks about the second. ``dims`` is the number of the weight's dimensions where the file tells it, None
    elsewhere.
    """

    rotations: Mapping[str, Tensor]
    side: Side = "in"
    map: Map = "exact"
    terms: int = 5
    shared: bool = False
    scaled: bool = False
    eps: float | None = None
    magnitude: Tensor | None = None
    embedding: bool = False
    conv_reversed: bool = False
    ragged: bool = False
    strength: Strength = "none"
    dims: int | None = None

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

    def vector(self, part: str = "") -> Tensor:
        """The packed skew blocks that the map is applied to, in float32 or better: unscaled, within the ball."""
        vector = self.rotations[part]
        if vector.dtype != torch.float64:
            vector = vector.float()
        if self.scaled:
            vector = vector / (2 * math.sqrt(self.block_size(part) - 1))
        if self.eps is not None:
            vector = project(vector, coft_radius(self.eps, vector.shape[0]))
        return vector

    def rotation(self, part: str = "") -> Tensor:
        """The rotation blocks that the packed vectors stand for, in float32 or better.

        Shapes:
            returns ``[blocks stored, b, b]``.

        Example:
            >>> LayerState({"": torch.zeros(2, 3)}).rotation().shape
            torch.Size([2, 3, 3])
        """
        skew = unpack(self.vector(part), self.block_size(part))
        if self.map == "exact":
            return cayley(skew)
        return neumann(skew, self.terms, legacy=self.map == "neumann_legacy")

    def plain(self) -> LayerState:
        """The same layer with nothing left to apply: no factor and no ball."""
        if not self.scaled and self.eps is None:
            return self
        return replace(self, rotations={part: self.vector(part) for part in self.rotations}, scaled=False, eps=None)

    def for_weight(self, shape: Sequence[int]) -> LayerState:
        """The layer as it is for a base weight of this shape, ``conv_reversed`` settled.

        Shapes: ``(out, in)`` or ``(out, in, *kernel)``.
        """
        if not self.conv_reversed:
            return self
        if len(shape) == 2:
            return replace(self, conv_reversed=False)
        # Both series give the transpose for the negative; torch negates no numbers of one byte.
        turned = {part: -(v if v.element_size() > 1 else v.float()) for part, v in self.rotations.items()}
        return replace(self, rotations=turned, conv_reversed=False, eps=None)  # OneTrainer has no ball there

    def runs_on(self, features: int) -> bool:
        """Whether the layer runs as a rotation of so many features; if not, ``apply`` is its exact weight transform.

        Raises:
            AdapterFileError: the blocks do not fit at all.

        Example:
            >>> LayerState({"": torch.zeros(2, 3)}, ragged=True).runs_on(5)  # two blocks of 3
            False
        """
        size, count = self.block_size(), self.block_count()
        fits = features % size == 0 if count is None else features == count * size
        if not fits and not (self.ragged and (count is None or features <= count * size)):
            refuse_misfit(features, size if count is None else count * size, [features], self.side)
        return fits

    def apply(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The new weight, in float32 or better; for layers with one rotation.

        Shapes: ``(out, in)`` or ``(out, in, *kernel)`` -> the same; an embedding ``(tokens, dim)``. A layer that stores
        ``(in, out)`` passes the transpose.

        Raises:
            AdapterFileError: the blocks do not fit the weight, or the layer has several parts.

        Example:
            >>> quarter = LayerState({"": torch.ones(1, 1)})
            >>> quarter.apply(torch.tensor([[1.0, 0.0]]))
            tensor([[0., 1.]])
        """
        if set(self.rotations) != {""}:
            raise AdapterFileError("a packed layer", got=f"parts {', '.join(self.rotations)}", needed="one rotation")
        if self.shared and self.rotations[""].shape[0] != 1:
            got = f"{self.rotations[''].shape[0]} blocks"
            raise AdapterFileError("a block that stands for all", got=got, needed="one")
        W, layer = lifted(weight).flatten(1), self.for_weight(weight.shape)
        R = layer.rotation().to(W.dtype)
        X = W if self.side == "in" else W.mT
        features = X.shape[-1]
        if not self.runs_on(features):
            X = pad(X, (0, -features % R.shape[-1] if self.shared else R.shape[0] * R.shape[-1] - features))
        X = turn(X, R.mT if self.embedding else R)[..., :features]
        turned = X if self.side == "in" else X.mT
        if self.embedding:
            turned = rows_scaled(turned.mT, self.magnitude).mT
        scale = None if self.embedding else self.magnitude
        return blended(W, turned, scale, self.strength, strength).reshape(weight.shape)


@dataclass(frozen=True)
class AdapterState:
    """An adapter: its layers by name, everything else that was saved, and the config as it was read.

    Attributes:
        layers: what runs as a rotation.
        transforms: what can only be applied to a weight; no layer is in both.
        config: the adapter's own config, if it has one.
        other: tensors beside the rotations, as of ``modules_to_save``.
        source: where it was read.
        format: id of the format on the roster.
        prefixes: layer -> what stood before the format's own suffix in the file. Names of layers are the same without
            PEFT's ``base_model.model.``; what names a part of a pipeline, as ``lora_te1_``, stays, for without it two
            layers could have one name. Layers of diffusers' processors are called as the module that they turn.
        metadata: the text in the header of the file.
        warnings: what a user must know before using the adapter.

    Example:
        >>> AdapterState({"lin": LayerState({"": torch.zeros(2, 3)})}).parameters
        6
    """

    layers: Mapping[str, LayerState]
    config: Mapping[str, Any] = field(default_factory=dict)
    other: Mapping[str, Tensor] = field(default_factory=dict)
    source: Path | None = None
    format: str = ""
    transforms: Mapping[str, WeightTransform] = field(default_factory=dict)
    prefixes: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """How many numbers were trained, those of ``modules_to_save`` and biases included."""
        trained = [*self.layers.values(), *self.transforms.values()]
        return sum(layer.parameters for layer in trained) + sum(t.numel() for t in self.other.values())

    def transform(self, name: str) -> WeightTransform:
        """The exact weight transform of a layer, whichever kind it is.

        Raises:
            KeyError: the adapter has no such layer.
        """
        return self.transforms[name] if name in self.transforms else self.layers[name]
