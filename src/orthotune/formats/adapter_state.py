"""An adapter in memory, independent of the file format: packed skew-symmetric matrices, with their specs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from orthotune.errors import AdapterFileError
from orthotune.rotation.frozen import FrozenMap
from orthotune.rotation.on_weight import Blend, at_strength, lifted, rows_scaled
from orthotune.rotation.packing import block_size_of
from orthotune.rotation.spec import RotationSpec, Side
from orthotune.rotation.strength import Kind
from orthotune.rotation.transform import BlockTransform

#: how the tool that wrote a file blends -> how a layer interpolates at strengths other than 0 and 1
_KINDS: dict[Blend, Kind] = {"linear": "linear", "rotation": "rotation"}


@dataclass(frozen=True)
class LayerState:
    """The parameters of an adapter at one layer that runs as a rotation.

    Shapes:
        rotations: part -> ``[rows, b(b-1)/2]``. A layer with one rotation has the single part ``""``; a packed
            attention has ``q``, ``k``, ``v``. If the block is shared there is one row; the rows of experts are
            concatenated.
        magnitude: ``[out]``, the trained scale per output neuron, or None.

    ``spec`` is the record of the adapter at the layer; its block size (of the first part), magnitude and blend are
    taken from the other arguments. A file may hold vectors outside the COFT ball, saved after the last optimizer step;
    the tool that wrote it projects them before use, and so does ``rotation``.

    Three properties depend on the base weight, which the file does not contain. With ``conv_reversed``, a weight of
    more than two dimensions is rotated in the opposite direction (OneTrainer, sd-scripts ``oft_v2``); see
    ``for_weight``. With ``truncated``, the last block may reach past the features and is truncated (PEFT before 0.14);
    see ``runs_on``. A shared block is repeated. ``dims`` is the number of dimensions of the weight where the file
    records it, else None. ``blend`` is how the tool that wrote the file interpolates at strengths other than 1.
    """

    rotations: Mapping[str, Tensor]
    spec: RotationSpec = field(default_factory=RotationSpec)
    magnitude: Tensor | None = None
    embedding: bool = False
    conv_reversed: bool = False
    truncated: bool = False
    blend: Blend = "none"
    dims: int | None = None

    def __post_init__(self) -> None:
        blend = _KINDS.get(self.blend, "geodesic")
        size = self.block_size(next(iter(self.rotations)))
        spec = replace(self.spec, block_size=size, magnitude=self.magnitude is not None, blend=blend)
        object.__setattr__(self, "spec", spec)

    @property
    def side(self) -> Side:
        """The side of the spec, as frozen maps have it."""
        return self.spec.side

    def block_size(self, part: str = "") -> int:
        """The block size of one part."""
        return block_size_of(self.rotations[part].shape[-1])

    def block_count(self, part: str = "") -> int | None:
        """The number of blocks of one part; None for a shared block, whose number depends on the base model."""
        return None if self.spec.shared else self.rotations[part].shape[-2]

    @property
    def parameters(self) -> int:
        """The number of trained parameters."""
        extra = 0 if self.magnitude is None else self.magnitude.numel()
        return extra + sum(vector.numel() for vector in self.rotations.values())

    def spec_of(self, part: str = "") -> RotationSpec:
        """The spec with the block size of one part."""
        size = self.block_size(part)
        return self.spec if size == self.spec.block_size else replace(self.spec, block_size=size)

    def vector(self, part: str = "") -> Tensor:
        """The packed skew blocks that the map takes: scaled, projected to the COFT ball, in float32 or float64."""
        return self.spec_of(part).vector(self.rotations[part])

    def rotation(self, part: str = "") -> Tensor:
        """The rotation blocks of one part, in float32 or float64.

        Shapes:
            returns ``[blocks stored, b, b]``.

        Example:
            >>> import torch
            >>> LayerState({"": torch.zeros(2, 3)}).rotation().shape
            torch.Size([2, 3, 3])
        """
        return self.spec_of(part).rotation(self.rotations[part])

    def factors(self) -> Iterator[tuple[str, Tensor]]:
        """The rotation of each part."""
        return ((part, self.rotation(part)) for part in self.rotations)

    def plain(self) -> LayerState:
        """The same layer with the scale and the COFT projection applied to its vectors."""
        if not self.spec.scaled and self.spec.eps is None:
            return self
        spec = replace(self.spec, scaled=False, eps=None)
        return replace(self, rotations={part: self.vector(part) for part in self.rotations}, spec=spec)

    def for_weight(self, shape: Sequence[int]) -> LayerState:
        """The layer for a base weight of a known shape, with ``conv_reversed`` applied.

        Shapes: ``(out, in)`` or ``(out, in, *kernel)``.
        """
        if not self.conv_reversed:
            return self
        if len(shape) == 2:
            return replace(self, conv_reversed=False)
        # Both series give the transpose for the negative vector. torch cannot negate float8.
        negated = {part: -(v if v.element_size() > 1 else v.float()) for part, v in self.rotations.items()}
        spec = replace(self.spec, eps=None)  # OneTrainer does not project convolutions
        return replace(self, rotations=negated, spec=spec, conv_reversed=False)

    def runs_on(self, features: int) -> bool:
        """Whether the layer is a rotation of ``features`` features; otherwise ``apply`` is its exact weight transform.

        Raises:
            AdapterFileError: the blocks do not fit.

        Example:
            >>> import torch
            >>> LayerState({"": torch.zeros(2, 3)}, truncated=True).runs_on(5)  # two blocks of 3
            False
        """
        return self._transform().fits(features)

    def apply(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The adapted weight, in float32 or float64, for layers with one rotation.

        Shapes: ``(out, in)`` or ``(out, in, *kernel)`` -> the same; an embedding ``(tokens, dim)``. A layer that stores
        ``(in, out)`` passes the transpose.

        Raises:
            AdapterFileError: the blocks do not fit the weight, or the layer has several parts.

        Example:
            >>> import torch
            >>> quarter = LayerState({"": torch.ones(1, 1)})
            >>> quarter.apply(torch.tensor([[1.0, 0.0]]))
            tensor([[0., 1.]])
        """
        if set(self.rotations) != {""}:
            raise AdapterFileError("a packed layer", got=f"parts {', '.join(self.rotations)}", needed="one rotation")
        moved = self.for_weight(weight.shape)._transform()
        if not self.embedding:
            return moved.apply(weight, strength)
        rows = lifted(weight)  # the vector of a token is rotated like the input of a layer
        rotated = rows_scaled(moved.act(rows).mT, self.magnitude).mT
        return at_strength(rows, rotated, None, self.blend, strength)

    def _transform(self) -> BlockTransform:
        magnitude = None if self.embedding else self.magnitude
        return BlockTransform(self.spec, self.rotations[""], magnitude, self.blend, self.truncated)


@dataclass(frozen=True)
class AdapterState:
    """An adapter: its layers by name, all other saved tensors, and its config.

    Attributes:
        layers: layers that run as rotations.
        transforms: layers that can only be applied to a weight; no layer is in both mappings.
        config: the config as it was read; empty without one.
        other: tensors besides the rotations, such as those of ``modules_to_save``.
        source: path of the file.
        format: id of the format in the registry.
        prefixes: layer -> the part of its tensor names before the suffix. The name of a layer is this prefix without
            the ``base_model.model.`` of PEFT. Prefixes of a pipeline component, such as ``lora_te1_``, are kept, so
            that names are unique. Layers of diffusers' attention processors are named after the module that they
            rotate.
        metadata: the text entries of the header.
        warnings: messages that a user must see before using the adapter.

    Example:
        >>> import torch
        >>> AdapterState({"lin": LayerState({"": torch.zeros(2, 3)})}).parameters
        6
    """

    layers: Mapping[str, LayerState]
    config: Mapping[str, Any] = field(default_factory=dict)
    other: Mapping[str, Tensor] = field(default_factory=dict)
    source: Path | None = None
    format: str = ""
    transforms: Mapping[str, FrozenMap] = field(default_factory=dict)
    prefixes: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """The number of trained parameters, including ``modules_to_save`` and biases."""
        trained = [*self.layers.values(), *self.transforms.values()]
        return sum(layer.parameters for layer in trained) + sum(t.numel() for t in self.other.values())

    def transform(self, name: str) -> FrozenMap:
        """The exact weight transform of a layer of either kind.

        Raises:
            KeyError: the adapter has no such layer.
        """
        return self.transforms[name] if name in self.transforms else self.layers[name]
