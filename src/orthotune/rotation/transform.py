"""The door for other orthogonal transforms than blocks: what each must say of itself, and the list of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from orthotune.errors import AdapterFileError, OrthotuneError
from orthotune.rotation.butterfly import Butterfly
from orthotune.rotation.family_registry import FAMILY
from orthotune.rotation.frozen import Blocks, SplitRows
from orthotune.rotation.geodesic import planes_of_skew
from orthotune.rotation.measure import rotation_angles
from orthotune.rotation.on_weight import (
    Blend,
    KernelNeeds,
    at_strength,
    lifted,
    on_features,
    refuse_misfit,
    refuse_scale,
    rotate_blocks,
    rotated_inputs,
)
from orthotune.rotation.packing import element_count
from orthotune.rotation.spec import RotationSpec, Side


class Transform(Protocol):
    """A map ``M`` of the features of one side of a layer, with its parameters.

    ``side="in"``: ``W' = W Mᵀ``, the layer's input becomes ``x M``. ``side="out"``: ``W' = M W``, its output becomes
    ``y Mᵀ``.
    """

    @property
    def side(self) -> Side:
        """Which features are mapped."""

    @property
    def orthogonal(self) -> bool:
        """Whether ``M`` is orthogonal, to rounding."""

    @property
    def kernel(self) -> KernelNeeds | None:
        """What a kernel of the action needs; None where only the weight is mapped, or the parts differ."""

    @staticmethod
    def parameter_shapes(features: int, spec: RotationSpec) -> dict[str, tuple[int, ...]]:
        """Name -> shape of each trained tensor for so many features; nothing for what cannot be trained."""

    def factors(self) -> Iterator[tuple[str, Tensor]]:
        """Name and matrices ``(n, b, b)`` of every factor of ``M``."""

    def act(self, x: Tensor) -> Tensor:
        """The layer's input or output ``(..., features)``, mapped.

        Raises:
            UnsupportedLayerError: the map exists on the weight only.
        """

    def apply(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The new weight ``(out, in)`` or ``(out, in, *kernel)``, in float32 or better."""

    def inverse(self) -> Transform:
        """The map that undoes this one."""

    def power(self, t: float) -> Transform:
        """``M^t``: the identity at 0, ``M`` at 1, the inverse at -1."""


@dataclass(frozen=True)
class BlockTransform:
    """Blocks of a spec with their stored parameters: the reference for layers and kernels.

    Args:
        spec: the meaning of the parameters.
        numbers: ``(rows, b (b - 1) / 2)``; one row if the spec shares its block.
        magnitude: scale of the output neurons ``(out,)``, or None.
        blend: what strengths other than 1 mean in the file's own tool.
        truncated: the last block may reach past the features and is truncated (PEFT before 0.14).

    Example:
        >>> quarter = BlockTransform(RotationSpec(block_size=2), torch.ones(1, 1))
        >>> quarter.apply(torch.tensor([[1.0, 0.0]])), quarter.act(torch.tensor([1.0, 0.0]))
        (tensor([[0., 1.]]), tensor([ 0., -1.]))
    """

    spec: RotationSpec
    numbers: Tensor
    magnitude: Tensor | None = None
    blend: Blend = "none"
    truncated: bool = False

    @staticmethod
    def parameter_shapes(features: int, spec: RotationSpec) -> dict[str, tuple[int, ...]]:
        """Name -> shape of each trained tensor for so many features.

        Raises:
            OrthotuneError: the block size does not divide them.

        Example:
            >>> BlockTransform.parameter_shapes(12, RotationSpec(block_size=4))
            {'weight': (3, 6)}
        """
        if not spec.block_size or features % spec.block_size:
            raise OrthotuneError(f"blocks of {spec.block_size}", got=f"{features} features", needed="a divisor of them")
        return {"weight": (1 if spec.shared else features // spec.block_size, element_count(spec.block_size))}

    @property
    def side(self) -> Side:
        """The spec's."""
        return self.spec.side

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return self.numbers.numel() + (0 if self.magnitude is None else self.magnitude.numel())

    @property
    def orthogonal(self) -> bool:
        """Whether the map is the exact one, of blocks that are not cut."""
        return self.spec.exact and not self.truncated

    @property
    def kernel(self) -> KernelNeeds:
        """What a kernel of its product needs."""
        return KernelNeeds(self.spec.block_size, self.spec.dtype)

    def factors(self) -> Iterator[tuple[str, Tensor]]:
        """The rotations of the stored blocks."""
        yield "", self.spec.rotation(self.numbers)

    def fits(self, features: int, shape: Sequence[int] | None = None) -> bool:
        """Whether the blocks fill so many features; if not, they are cut.

        Raises:
            AdapterFileError: they fit in neither way.

        Example:
            >>> BlockTransform(RotationSpec(block_size=3), torch.zeros(2, 3), truncated=True).fits(5)
            False
        """
        size, rows = self.spec.block_size, self.numbers.shape[0]
        fits = features % size == 0 if self.spec.shared else features == rows * size
        if not fits and not (self.truncated and (self.spec.shared or features <= rows * size)):
            refuse_misfit(
                features, size if self.spec.shared else rows * size, [features] if shape is None else shape, self.side
            )
        return fits

    def rows(self, X: Tensor, back: bool = False) -> Tensor:
        """``X Mᵀ``, or ``X M``; ``(..., features)``."""
        R, features = self.spec.rotation(self.numbers).to(X.dtype), X.shape[-1]
        width = R.shape[0] * R.shape[-1]
        past = -features % width if self.spec.shared else width - features
        return rotate_blocks(pad(X, (0, past)) if past else X, R.mT if back else R)[..., :features]

    def act(self, x: Tensor) -> Tensor:
        """The layer's input or output, mapped; see :func:`~orthotune.rotation.on_weight.on_features`."""
        self.fits(x.shape[-1], x.shape)
        return on_features(self.rows, self.side, self.magnitude, x)

    def apply(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The new weight, see :class:`~orthotune.rotation.frozen.FrozenMap`.

        Raises:
            AdapterFileError: the blocks do not fit, or there are several where one is shared.
        """
        if self.spec.shared and self.numbers.shape[0] != 1:
            raise AdapterFileError("a shared block", got=f"{self.numbers.shape[0]} blocks", needed="one")
        W, channels = lifted(weight).flatten(1), self.spec.conv == "channels"
        self.fits(W.shape[0] if self.side == "out" else weight.shape[1] if channels else W.shape[1])
        rotated = self.rows(W.mT).mT if self.side == "out" else rotated_inputs(self.rows, lifted(weight), channels)
        return at_strength(W, rotated, self.magnitude, self.blend, strength).reshape(weight.shape)

    def inverse(self) -> BlockTransform | Blocks:
        """The inverse map: negative parameters of the exact map, inverse blocks of a series.

        Raises:
            OrthotuneError: the rows are scaled, too; or blocks are truncated, which has no inverse.
        """
        self._refuse_more("an inverse")
        return replace(self, numbers=-self.numbers) if self.spec.exact else self._dense().inverse()

    def power(self, t: float) -> BlockTransform | Blocks:
        """``M^t``: every plane by ``t`` times its angle.

        Raises:
            OrthotuneError: the rows are scaled, too; or blocks are truncated, which has no powers.
        """
        if t == 1:
            return self
        self._refuse_more(f"a power of {t:g}")
        if t == 0:
            return replace(self, numbers=torch.zeros_like(self.numbers))
        R = self.spec.rotation(self.numbers)
        found = planes_of_skew(self.spec.skew(self.numbers), None if self.spec.exact else R).power(t).to(R.dtype)
        return replace(self._dense(), matrices=found)

    def _dense(self) -> Blocks:
        return Blocks(self.spec.rotation(self.numbers), self.side, None, self.blend, self.spec.shared)

    def _refuse_more(self, what: str) -> None:
        refuse_scale(self.magnitude, what)
        if self.truncated:
            raise OrthotuneError(what, got="blocks that may be cut at the edge", needed="blocks that fill the weight")


#: name -> transform. A spec names the one that its layer trains; the others are what files hold.
TRANSFORMS: dict[str, type[Any]] = {
    "blocks": BlockTransform,
    **FAMILY,
    "finished": Blocks,
    "butterfly of a file": Butterfly,
    "split rows": SplitRows,
}


def angles_of(transform: Transform) -> Tensor:
    """The angles of every plane of every factor, in radians from 0 to pi.

    Shapes: returns ``(planes,)``.

    Example:
        >>> angles_of(BlockTransform(RotationSpec(block_size=2), torch.ones(1, 1))).tolist()
        [1.5707963267948966]
    """
    return torch.cat([rotation_angles(R).flatten() for _, R in transform.factors()])
