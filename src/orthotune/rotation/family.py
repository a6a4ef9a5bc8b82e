"""What every trained transform besides blocks is: a spec, its stored parameters, and an operator made of both."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NoReturn

import torch
from torch import Tensor

from orthotune.errors import BlockSizeError, OrthotuneError
from orthotune.rotation.blocks import choose_layout
from orthotune.rotation.geodesic import planes
from orthotune.rotation.on_weight import (
    Blend,
    at_strength,
    lifted,
    on_features,
    refuse_misfit,
    refuse_scale,
    rotated_inputs,
    rows_scaled,
)
from orthotune.rotation.operator import LowRank, Operator
from orthotune.rotation.packing import pack
from orthotune.rotation.spec import RotationSpec, Side
from orthotune.rotation.strength import Kind


@dataclass(frozen=True)
class Sizes:
    """The sizes of a transform at one matrix; equal sizes mean equal shapes.

    Args:
        features: number of features that are mapped.
        rows, elements: shape of the stored parameters of one matrix.
        block_size: size of a block, 0 without blocks.
        block_count: number of blocks, or of reflections or dimensions.
    """

    features: int
    rows: int
    elements: int
    block_size: int = 0
    block_count: int = 0
    shared: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the stored parameters."""
        return self.rows, self.elements


@dataclass(frozen=True)
class FamilyTransform:
    """A trained transform with its stored parameters: the reference for layers, and a map that files hold.

    Args:
        spec: the meaning of the parameters.
        numbers: the stored parameters ``(rows, elements)``, ``(copies * rows, elements)`` for experts.
        magnitude: scale of the output neurons ``(out,)``, or None.
        blend: what strengths other than 1 mean in the file's own tool.
        embedding: the rows of an embedding are mapped as inputs.
        dims: the number of the weight's dimensions where the file says it.
        backwards: the inverse map.
        basis: frozen numbers that belong to the map, for transforms that have some.
        with_bias: the tool that wrote the file maps the bias of the layer, too.
    """

    spec: RotationSpec
    numbers: Tensor
    magnitude: Tensor | None = None
    blend: Blend = "none"
    embedding: bool = False
    dims: int | None = None
    backwards: bool = False
    basis: Tensor | None = None
    with_bias: bool = False

    #: name of the transform
    name: ClassVar[str] = ""
    #: the first is the usual one
    variants: ClassVar[tuple[str, ...]] = ("",)
    #: whether its size is a rank instead of a number or size of blocks, and which rank it has by default
    ranked: ClassVar[bool] = False
    default_rank: ClassVar[int] = 8
    #: number of stages by default; 0 for a transform without stages
    default_factors: ClassVar[int] = 0
    #: whether a frozen basis, which depends on the weight, belongs to the map
    needs_basis: ClassVar[bool] = False
    kernel: ClassVar[None] = None

    # What a transform defines.

    @classmethod
    def sizes(cls, features: int, spec: RotationSpec) -> Sizes:
        """The sizes for so many features.

        Raises:
            OrthotuneError: the spec does not fit them.
        """
        raise NotImplementedError

    @classmethod
    def operator_of(cls, spec: RotationSpec, v: Tensor, basis: Tensor | None = None, plain: bool = False) -> Operator:
        """``M`` of stored parameters ``(..., rows, elements)``, differentiable, in float32 or better.

        ``plain``: in operations that function transforms look through.
        """
        raise NotImplementedError

    @classmethod
    def factors_of(cls, spec: RotationSpec, v: Tensor, basis: Tensor | None = None) -> Tensor:
        """Blocks ``(n, b, b)`` with the angles of ``M``; what they leave out is at rest."""
        raise NotImplementedError

    @classmethod
    def power_of(cls, spec: RotationSpec, v: Tensor, t: float, basis: Tensor | None = None) -> Operator:
        """``M^t`` of one matrix, without a gradient.

        Raises:
            OrthotuneError: there is no such power.
        """
        raise NotImplementedError

    @classmethod
    def raised(cls, spec: RotationSpec, v: Tensor, t: float, basis: Tensor | None = None) -> Operator:
        """``M^t``; where ``t`` is 0, 1 or -1, of every map that has an inverse, and of stacks of them.

        Raises:
            OrthotuneError: there is no such power.
        """
        if t == 0:
            made = cls.operator_of(spec, v, basis)
            nothing = torch.zeros(1, made.features, dtype=v.dtype, device=v.device)
            nothing = nothing if made.copies == 1 else nothing.expand(made.copies, -1, -1)
            return LowRank(nothing, nothing)
        if t in (1, -1):
            made = cls.operator_of(spec, v, basis)
            return made if t == 1 else made.mT if cls.orthogonal_of(spec) else made.inverse()
        if v.dim() > 2:
            refuse_power(t, "a stack of experts")
        return cls.power_of(spec, v, t, basis)

    @classmethod
    def numbers_at(cls, spec: RotationSpec, v: Tensor, t: float, basis: Tensor | None = None) -> Tensor:
        """Stored parameters of ``M^t``, in float64, where a power of the map has the form of the transform.

        They change smoothly with ``t``; at 1 they are those of the same map, but need not be ``v``.

        Shapes: ``v`` ``(copies * rows, elements)``, returns the same.

        Raises:
            OrthotuneError: the powers have another form, or do not exist.
        """
        refuse_form(t, f"the transform '{spec.transform}'")

    @classmethod
    def powers_are_blocks(cls, spec: RotationSpec) -> bool:
        """Whether powers are rotations of blocks and not of the transform's own form: they are written as blocks."""
        return False

    @classmethod
    def blocks_of(cls, spec: RotationSpec, v: Tensor, basis: Tensor | None = None) -> Tensor:
        """Blocks ``(n, b, b)`` of the map of one matrix in float64, for a transform whose powers are blocks.

        Shapes: ``v`` ``(rows, elements)``, float64.

        Raises:
            OrthotuneError: the powers are no blocks, or the blocks are too large to be taken apart.
        """
        refuse_form(0.5, f"the transform '{spec.transform}'")

    @classmethod
    def basis_of(cls, spec: RotationSpec, weight: Tensor) -> Tensor:
        """The frozen basis for a weight ``(..., out, in)``, for transforms that need one."""
        raise NotImplementedError

    @classmethod
    def start(cls, spec: RotationSpec, weight: Tensor, identity: bool) -> None:
        """Fill stored parameters ``(copies * rows, elements)``: the identity, or a random map."""
        with torch.no_grad():
            weight.zero_() if identity else weight.normal_(std=0.1)

    @classmethod
    def refuse_start(cls, spec: RotationSpec, identity: bool) -> str | None:
        """Why a transform of this spec cannot start so, or None."""
        return None

    @classmethod
    def spec_of_shape(cls, spec: RotationSpec, shape: Sequence[int]) -> RotationSpec:
        """The spec with the sizes that stored parameters of this shape have.

        Raises:
            OrthotuneError: no sizes give this shape.
        """
        raise NotImplementedError

    @classmethod
    def fault(cls, spec: RotationSpec, v: Tensor) -> str | None:
        """What stored parameters have that gives no map, or None."""
        return None

    @classmethod
    def orthogonal_of(cls, spec: RotationSpec) -> bool:
        """Whether every parameter gives an orthogonal map."""
        return True

    @classmethod
    def written_out(cls, spec: RotationSpec, trained: bool) -> bool:
        """Whether layers compute the map as blocks along the diagonal, in training or when it is kept for many calls.

        Such layers share their input with others like layers of the transform ``blocks``.
        """
        return False

    # What follows from it.

    @classmethod
    def choose(cls, spec: RotationSpec, features: int, r: int, fallback: str, layer: str) -> tuple[RotationSpec, bool]:
        """The spec with the sizes of a layer, and whether the wanted size had to give way.

        Args:
            spec: of the adapter; a ``block_size`` of 0 leaves the size to ``r``.
            features: of the side that is mapped.
            r: number of blocks, or the rank.
            fallback: see :func:`~orthotune.rotation.blocks.choose_layout`.
            layer: name for messages.

        Raises:
            BlockSizeError: the size does not divide the features, or the rank is larger than they are.
        """
        if cls.ranked:
            rank = r or spec.rank or cls.default_rank
            if rank > features:
                raise BlockSizeError(
                    f"r={rank} for layer '{layer}'", got=f"{features} features", needed="a rank of at most as many",
                    do="Give the layer its own r in rank_pattern, or exclude the layer",
                )  # fmt: skip
            return replace(spec, rank=rank, block_size=0), False
        layout, gave_way = choose_layout(
            features, r=r, block_size=0 if r else spec.block_size, shared=False, fallback=fallback, layer=layer
        )
        return replace(spec, block_size=layout.block_size), gave_way

    @classmethod
    def parameter_shapes(cls, features: int, spec: RotationSpec) -> dict[str, tuple[int, ...]]:
        """Name -> shape of each trained tensor for so many features."""
        return {"weight": cls.sizes(features, spec).shape}

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
        """Whether the map is orthogonal, to rounding."""
        return self.orthogonal_of(self.spec)

    @property
    def kind(self) -> Kind:
        """The interpolation for other strengths: geodesic where the map has powers, and the nearest to linear else."""
        try:
            self.raised(self.spec, wide(self.numbers), 0.5, self.basis)
        except OrthotuneError:
            return "linear" if self.magnitude is None else "rotation"
        return "geodesic"

    @property
    def operator(self) -> Operator:
        """The map ``M`` as an operator: rows ``x`` of inputs become ``x M``, columns of outputs ``M y``."""
        made = self.operator_of(self.spec, wide(self.numbers), self.basis)
        if not self.backwards:
            return made
        return made.mT if self.orthogonal else made.inverse()

    def factors(self) -> Iterator[tuple[str, Tensor]]:
        """The blocks with its angles."""
        yield "", self.factors_of(self.spec, wide(self.numbers), self.basis)

    def rows(self, X: Tensor, back: bool = False) -> Tensor:
        """``X Mᵀ``, or ``X M``; ``(..., features)``."""
        operator = self.operator
        if X.shape[-1] != operator.features:
            refuse_misfit(X.shape[-1], operator.features, X.shape, self.side)
        return (operator if back else operator.mT).right(X)

    def act(self, x: Tensor) -> Tensor:
        """The layer's input or output, mapped; see :func:`~orthotune.rotation.on_weight.on_features`."""
        return on_features(self.rows, self.side, self.magnitude, x)

    def apply(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The new weight, see :class:`~orthotune.rotation.frozen.FrozenMap`."""
        channels = self.spec.conv == "channels" and self.side == "in" and weight.dim() > 2
        if self.needs_basis and self.basis is None:
            W = weight.flatten(2).mT.flatten(0, 1) if channels else weight.flatten(1)
            return replace(self, basis=self.basis_of(self.spec, W)).apply(weight, strength)
        if self.embedding:  # the vector of a token is mapped like the input of a layer
            table = lifted(weight)
            moved = rows_scaled(self.rows(table, True).mT, self.magnitude).mT
            return at_strength(table, moved, None, self.blend, strength)
        W = lifted(weight).flatten(1)
        moved = self.rows(W.mT).mT if self.side == "out" else rotated_inputs(self.rows, lifted(weight), channels)
        return at_strength(W, moved, self.magnitude, self.blend, strength).reshape(weight.shape)

    def inverse(self) -> FamilyTransform:
        """The map that undoes this one.

        Raises:
            OrthotuneError: the rows are scaled, too.
        """
        refuse_scale(self.magnitude, "an inverse")
        return replace(self, backwards=not self.backwards)

    def at(self, t: float) -> FamilyTransform:
        """This transform with stored parameters of ``M^t``, and with ``m^t`` for a magnitude ``m``.

        Raises:
            OrthotuneError: the powers have another form, do not exist, or a magnitude has no logarithm.
        """
        if t == 1:
            return self
        numbers = self.numbers_at(self.spec, wide(self.numbers).double(), t, self.basis).to(wide(self.numbers).dtype)
        if self.magnitude is None:
            return replace(self, numbers=numbers)
        if bool((self.magnitude <= 0).any()):
            raise OrthotuneError(f"strength {t:g}", got="a magnitude of 0 or below, which has no logarithm")
        return replace(self, numbers=numbers, magnitude=self.magnitude.double().pow(t).to(self.magnitude.dtype))

    def as_blocks(self, t: float) -> tuple[RotationSpec, Tensor] | None:
        """The spec of blocks, and their packed skew matrices, of ``M^t``; None for a transform with powers of its form.

        Raises:
            OrthotuneError: an angle of ``M^t`` is pi.
        """
        if not self.powers_are_blocks(self.spec):
            return None
        R = self.blocks_of(self.spec, self.numbers.double(), self.basis)
        Q = planes(R).skew(-t if self.backwards else t)
        spec = replace(self.spec, transform="blocks", block_size=R.shape[-1], rank=0, factors=1, variant="")
        return spec, pack(Q).to(wide(self.numbers).dtype)

    def power(self, t: float) -> Any:
        """``M^t``: the identity at 0, the map at 1, the inverse at -1.

        Raises:
            OrthotuneError: the rows are scaled, too; or there is no such power.
        """
        if t == 1:
            return self
        refuse_scale(self.magnitude, f"a power of {t:g}")
        if t == -1:
            return self.inverse()
        found = self.raised(self.spec, wide(self.numbers), -t if self.backwards else t, self.basis)
        return OperatorMap(found, self.side, self.blend)


@dataclass(frozen=True)
class OperatorMap:
    """An operator as a map of one side, frozen.

    Example:
        >>> swap = LowRank(torch.tensor([[1.0, -1.0]]), torch.tensor([[-1.0, 1.0]]))
        >>> OperatorMap(swap, "in").apply(torch.tensor([[3.0, 4.0]]))
        tensor([[4., 3.]])
    """

    operator: Operator
    side: Side
    blend: Blend = "none"

    #: nothing of it is trained
    parameters = 0
    magnitude = None

    def factors(self) -> Iterator[tuple[str, Tensor]]:
        """The matrix."""
        yield "", self.operator.dense()[None]

    def apply(self, weight: Tensor, strength: float = 1.0) -> Tensor:
        """The new weight, see :class:`~orthotune.rotation.frozen.FrozenMap`."""
        W = lifted(weight).flatten(1)
        moved = self.operator.mT.right(W) if self.side == "in" else self.operator.left(W)
        return at_strength(W, moved, None, self.blend, strength).reshape(weight.shape)


class _Running(threading.local):
    again = False


_running = _Running()


@contextmanager
def computed_again() -> Iterator[None]:
    """Within it :func:`recomputed` keeps what it needs: a backward that computes again does so once.

    Example:
        >>> v = torch.zeros(1, requires_grad=True)
        >>> with computed_again():
        ...     type(recomputed(torch.exp, v).grad_fn).__name__
        'ExpBackward0'
    """
    before, _running.again = _running.again, True
    try:
        yield
    finally:
        _running.again = before


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(v)
        ctx.function = function
        return function(v)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (v,) = ctx.saved_tensors
        again = torch.is_grad_enabled()  # a gradient that is to be differentiated keeps its graph
        with torch.enable_grad():
            leaf = v if again else v.detach().requires_grad_()
            (found,) = torch.autograd.grad(ctx.function(leaf), leaf, grad, create_graph=again)
        return found, None


def recomputed(function: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
    """``function(v)``, which keeps nothing but ``v`` for its backward and is computed once more there.

    Args:
        function: of one tensor, differentiable.
        v: its argument.

    Example:
        >>> recomputed(torch.exp, torch.zeros(1))
        tensor([1.])
    """
    if torch.compiler.is_compiling() or not (torch.is_grad_enabled() and v.requires_grad) or _running.again:
        return function(v)
    found: Tensor = _Recomputed.apply(v, function)
    return found


def wide(v: Tensor) -> Tensor:
    """Stored parameters in float32, or in float64 for float64 ones.

    Example:
        >>> wide(torch.zeros(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return v if v.dtype == torch.float64 else v.float()


def within_span(operator: LowRank) -> tuple[Tensor, Tensor]:
    """An orthonormal basis of what an operator changes, and the operator in that basis, in float64.

    Shapes: returns ``(k, n)`` with ``k = min(2 r, n)`` at most, and ``(k, k)``; outside of the basis ``M`` is the
    identity. Only for operators whose two factors span the same rows.
    """
    A, B = operator.A.detach().double(), operator.B.detach().double()
    basis = torch.linalg.qr(A.mT).Q.mT
    small = torch.eye(basis.shape[0], dtype=A.dtype, device=A.device) + (basis @ A.mT) @ (B @ basis.mT)
    return basis, small


def power_within_span(operator: LowRank, t: float, what: str) -> LowRank:
    """``M^t`` of an orthogonal ``I + Aᵀ B``: every plane within the span by ``t`` times its angle.

    Raises:
        OrthotuneError: the determinant is -1, so that there is no real logarithm.
    """
    basis, small = within_span(operator)
    if bool(torch.linalg.det(small) < 0):
        refuse_power(t, f"{what}, whose determinant is -1")
    moved = planes(small).power(t) - torch.eye(small.shape[-1], dtype=small.dtype, device=small.device)
    return LowRank(basis.to(operator.A.dtype), (moved @ basis).to(operator.A.dtype))


def refuse_power(t: float, what: str) -> NoReturn:
    """Raise an OrthotuneError: the map lies on no geodesic from the identity."""
    raise OrthotuneError(
        f"a power of {t:g}", got=what, needed="a map with a real logarithm, or the power 0, 1 or -1",
        do="Use kind='linear'",
    )  # fmt: skip


def refuse_form(t: float, what: str) -> NoReturn:
    """Raise an OrthotuneError: no stored parameters of the transform give its power."""
    raise OrthotuneError(
        f"stored parameters at strength {t:g}", got=what, needed="a transform whose powers have its own form: blocks, "
        "an even number of reflections, one stage of a butterfly, planes of angles or road_1, rotation of a subspace",
        do="Merge the adapter at a strength (orthotune merge --strength T); stages are written as blocks by "
        "orthotune.rewind(ADAPTER, 1, OUT)",
    )  # fmt: skip


def random_directions(weight: Tensor, repeat: int = 1) -> None:
    """Fill ``(rows, n)`` with uniform numbers as PEFT's HRA does; ``repeat`` neighbours get the same ones."""
    with torch.no_grad():
        bound = math.sqrt(6 / ((1 + 5) * max(weight.shape[0] // repeat, 1)))
        sampled = torch.empty(weight.shape[0] // repeat, *weight.shape[1:], dtype=weight.dtype, device=weight.device)
        weight.copy_(sampled.uniform_(-bound, bound).repeat_interleave(repeat, 0))
