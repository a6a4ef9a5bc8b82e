"""An adapter in memory, whatever file it came from: packed skew vectors and how they become rotations."""

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

#: what a layer does between the base and the adapter, where that is what the file's own tool does
_KINDS: dict[Blend, Kind] = {"linear": "linear", "rotation": "rotation"}


@dataclass(frozen=True)
class LayerState:
    """What an adapter holds for one layer that runs as a rotation.

    Shapes:
        rotations: part -> ``[rows, b(b-1)/2]``. A layer with one rotation has the single part ``""``; a packed
            attention has ``q``, ``k``, ``v``. One row is used for all blocks if shared; experts follow each other.
        magnitude: ``[out]``, the trained scale per output neuron, or None.

    ``spec`` says what the numbers mean; its block size (of the first part), its magnitude and its blend are taken from
    the other arguments. A file may hold vectors from after the last optimizer step, outside COFT's ball; its writer
    projects them before use, and so does ``rotation``.

    Three things hang on the base weight, which the file does not know: with ``conv_reversed`` a weight of more than two
    dimensions is rotated the other way (OneTrainer, sd-scripts ``oft_v2``); with ``ragged`` the blocks may reach past
    the weight and are cut there (PEFT before 0.14); and a shared block is repeated. ``for_weight`` settles the first,
    ``runs_on`` asks about the second. ``dims`` is the number of the weight's dimensions where the file says it, None
    elsewhere. ``blend`` is what strengths other than 1 mean in the file's own tool.
    """

    rotations: Mapping[str, Tensor]
    spec: RotationSpec = field(default_factory=RotationSpec)
    magnitude: Tensor | None = None
    embedding: bool = False
    conv_reversed: bool = False
    ragged: bool = False
    blend: Blend = "none"
    dims: int | None = None

    def __post_init__(self) -> None:
        blend = _KINDS.get(self.blend, "geodesic")
        size = self.block_size(next(iter(self.rotations)))
        spec = replace(self.spec, block_size=size, magnitude=self.magnitude is not None, blend=blend)
        object.__setattr__(self, "spec", spec)

    @property
    def side(self) -> Side:
        """The spec's, by which a frozen map is put in order with others."""
        return self.spec.side

    def block_size(self, part: str = "") -> int:
        """The size of the blocks of one part."""
        return block_size_of(self.rotations[part].shape[-1])

    def block_count(self, part: str = "") -> int | None:
        """How many blocks the layer has; None if they are shared, for only the base model knows then."""
        return None if self.spec.shared else self.rotations[part].shape[-2]

    @property
    def parameters(self) -> int:
        """How many numbers were trained."""
        extra = 0 if self.magnitude is None else self.magnitude.numel()
        return extra + sum(vector.numel() for vector in self.rotations.values())

    def spec_of(self, part: str = "") -> RotationSpec:
        """The spec with the block size of one part."""
        size = self.block_size(part)
        return self.spec if size == self.spec.block_size else replace(self.spec, block_size=size)

    def vector(self, part: str = "") -> Tensor:
        """The packed skew blocks that the map is applied to, in float32 or better: scaled, within the ball."""
        return self.spec_of(part).vector(self.rotations[part])

    def rotation(self, part: str = "") -> Tensor:
        """The rotation blocks that the packed vectors stand for, in float32 or better.

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
        """The same layer with nothing left to apply: no factor and no ball."""
        if not self.spec.scaled and self.spec.eps is None:
            return self
        spec = replace(self.spec, scaled=False, eps=None)
        return replace(self, rotations={part: self.vector(part) for part in self.rotations}, spec=spec)

    def for_weight(self, shape: Sequence[int]) -> LayerState:
        """The layer as it is for a base weight of this shape, ``conv_reversed`` settled.

        Shapes: ``(out, in)`` or ``(out, in, *kernel)``.
        """
        if not self.conv_reversed:
            return self
        if len(shape) == 2:
            return replace(self, conv_reversed=False)
        # Both series give the transpose for the negative; torch negates no numbers of one byte.
        negated = {part: -(v if v.element_size() > 1 else v.float()) for part, v in self.rotations.items()}
        spec = replace(self.spec, eps=None)  # OneTrainer has no ball there
        return replace(self, rotations=negated, spec=spec, conv_reversed=False)

    def runs_on(self, features: int) -> bool:
        """Whether the layer runs as a rotation of so many features; if not, ``apply`` is its exact weight transform.

        Raises:
            AdapterFileError: the blocks do not fit at all.

        Example:
            >>> import torch
            >>> LayerState({"": torch.zeros(2, 3)}, ragged=True).runs_on(5)  # two blocks of 3
            False
        """
        return self._transform().fits(features)

    def apply(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The new weight, in float32 or better; for layers with one rotation.

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
        rows = lifted(weight)  # what is looked up is rotated as an input is
        rotated = rows_scaled(moved.act(rows).mT, self.magnitude).mT
        return at_strength(rows, rotated, None, self.blend, strength)

    def _transform(self) -> BlockTransform:
        magnitude = None if self.embedding else self.magnitude
        return BlockTransform(self.spec, self.rotations[""], magnitude, self.blend, self.ragged)


@dataclass(frozen=True)
class AdapterState:
    """An adapter: its layers by name, everything else that was saved, and the config as it was read.

    Attributes:
        layers: what runs as a rotation.
        transforms: what can only be applied to a weight; no layer is in both.
        config: the adapter's own config, if it has one.
        other: tensors beside the rotations, as of ``modules_to_save``.
        source: where it was read.
        format: id of the format in the registry.
        prefixes: layer -> what stood before the format's own suffix in the file. Names of layers are the same without
            PEFT's ``base_model.model.``; what names a part of a pipeline, as ``lora_te1_``, stays, for without it two
            layers could have one name. Layers of diffusers' processors are called as the module that they turn.
        metadata: the text in the header of the file.
        warnings: what a user must know before using the adapter.

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
        """How many numbers were trained, those of ``modules_to_save`` and biases included."""
        trained = [*self.layers.values(), *self.transforms.values()]
        return sum(layer.parameters for layer in trained) + sum(t.numel() for t in self.other.values())

    def transform(self, name: str) -> FrozenMap:
        """The exact weight transform of a layer, whichever kind it is.

        Raises:
            KeyError: the adapter has no such layer.
        """
        return self.transforms[name] if name in self.transforms else self.layers[name]
