"""Rotation from the packed parameters that a file or a layer holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from orthotune.kernels.choose import choose
from orthotune.rotation.ball import coft_radius, project
from orthotune.rotation.cayley import cayley_backward, cayley_forward
from orthotune.rotation.neumann import neumann
from orthotune.rotation.packing import pack, unpack
from orthotune.rotation.spec import RotationSpec

NeumannSeries = Literal["current", "legacy"]


class _ExactRotation(torch.autograd.Function):
    """The gradient of rotations that are known, those of many layers in one batch: ``R`` is all that it needs.

    ``R`` is no saved tensor, which a backward would free: one node serves every forward until a parameter changes.
    """

    @staticmethod
    def forward(
        ctx: Any, R: Tensor, scale: float, spent: Callable[[], None] | None, *stored: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.R, ctx.scale, ctx.spent = R, scale, spent
        ctx.rows = [v.shape[0] for v in stored]
        ctx.set_materialize_grads(False)
        return R.split(ctx.rows) if len(stored) > 1 else (R.view_as(R),)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if ctx.spent is not None:
            ctx.spent()
        came = {i: grad for i, grad in enumerate(grads) if grad is not None}
        found: list[Tensor | None] = [None] * len(grads)
        if came:
            R, rows = ctx.R, [ctx.rows[i] for i in came]
            if len(came) < len(grads):  # a layer that this forward passed by
                R = torch.cat([part for i, part in enumerate(R.split(ctx.rows)) if i in came])
            dv = _exact_backward(R, torch.cat([*came.values()]) if len(came) > 1 else next(iter(came.values())))
            dv = dv if ctx.scale == 1 else dv.mul_(ctx.scale)
            for i, own in zip(came, dv.split(rows), strict=True):
                found[i] = own
        return None, None, None, *found


def _exact_backward(R: Tensor, grad: Tensor) -> Tensor:
    if _use_triton(R, R.shape[-1]):
        from orthotune.kernels import triton_cayley

        return triton_cayley.exact_backward(R, grad)
    if torch.is_autocast_enabled(grad.device.type):
        with torch.autocast(grad.device.type, enabled=False):
            return _exact_backward(R, grad)
    dQ = cayley_backward(R, grad)
    return pack(dQ).sub_(pack(dQ, lower=True))


def _exact(v: Tensor, block_size: int) -> Tensor:
    if _use_triton(v, block_size):
        from orthotune.kernels import triton_cayley

        return triton_cayley.exact_forward(v, block_size)
    return cayley_forward(unpack(v, block_size))


def _use_triton(stored: Tensor, block_size: int) -> bool:
    # Triton is imported where it runs: it is optional, and slow to import.
    return (
        stored.numel() > 0 and choose("from_parameters", stored.device.type, stored.dtype, block_size).path == "triton"
    )


def exact_rotation(
    v: Tensor, block_size: int, known: Tensor | None = None, spent: Callable[[], None] | None = None
) -> Tensor:
    """Exact rotation ``cayley(unpack(v))``.

    Shapes: ``(..., b (b - 1) / 2)`` -> ``(..., b, b)``; float32 or float64. ``known`` is the result when it has been
    computed before: only the gradient is added. ``spent`` is called when the backward has passed.

    Example:
        >>> exact_rotation(torch.zeros(1, 3), 3)[0].trace().item()
        3.0
    """
    if torch.is_autocast_enabled(v.device.type):
        with torch.autocast(v.device.type, enabled=False):
            return exact_rotation(v, block_size, known, spent)
    if v.requires_grad and torch.is_grad_enabled():
        with torch.no_grad():
            R = _exact(v, block_size) if known is None else known
        return _ExactRotation.apply(R, 1.0, spent, v)[0]
    return _exact(v, block_size) if known is None else known


@dataclass(frozen=True)
class RotationMap:
    """From stored numbers to a rotation.

    Args:
        block_size: size of a block.
        exact: exact Cayley map; otherwise a Neumann polynomial with ``terms``.
        series: ``"legacy"`` is the polynomial of PEFT 0.16-0.17.
        scaled: the stored numbers are divided by ``2 sqrt(b - 1)``, so that one learning rate fits every block size.
        eps: radius of COFT's ball in PEFT's units (see :func:`coft_radius`); None leaves the rotation free.

    Example:
        >>> RotationMap(block_size=2)(torch.zeros(3, 1)).shape
        torch.Size([3, 2, 2])
    """

    block_size: int
    exact: bool = True
    terms: int = 5
    series: NeumannSeries = "current"
    scaled: bool = False
    eps: float | None = None

    @property
    def scale(self) -> float:
        """Factor between the stored numbers and the skew matrix."""
        return 1 / (2 * math.sqrt(self.block_size - 1)) if self.scaled else 1.0

    def within_ball(self, v: Tensor) -> Tensor:
        """The stored numbers ``(rows, n)`` after COFT's projection; unchanged without COFT."""
        return v if self.eps is None else project(v, coft_radius(self.eps, v.shape[-2]) / self.scale)

    def __call__(self, v: Tensor, known: Tensor | None = None, spent: Callable[[], None] | None = None) -> Tensor:
        """Rotations ``(rows, b, b)`` of the stored numbers ``(rows, n)``; float32, or float64 for float64 numbers.

        ``known`` and ``spent`` are :func:`exact_rotation`'s; a series takes no notice of them.
        """
        if self.exact:
            return exact_rotation(self._vector(v), self.block_size, known, spent)
        return neumann(self.skew(v), self.terms, self.series == "legacy")

    def skew(self, v: Tensor) -> Tensor:
        """The skew blocks ``(rows, b, b)`` that the map is applied to: scaled, and within COFT's ball."""
        return unpack(self._vector(v), self.block_size)

    def _vector(self, v: Tensor) -> Tensor:
        v = self.within_ball(v.to(torch.promote_types(v.dtype, torch.float32)))
        return v * self.scale if self.scaled else v

    def connect(self, stored: Sequence[Tensor], R: Tensor, spent: Callable[[], None]) -> tuple[Tensor, ...]:
        """Known exact rotations of several layers, each with the gradient to its own stored numbers, in one node.

        Shapes: ``stored`` ``(rows_i, n)``, ``R`` ``(sum of rows, b, b)``; returns views ``(rows_i, b, b)`` of ``R``.
        """
        found: tuple[Tensor, ...] = _ExactRotation.apply(R, self.scale, spent, *stored)
        return found


def map_of(spec: RotationSpec) -> RotationMap:
    """The map of a spec."""
    series: NeumannSeries = "legacy" if spec.map == "neumann_legacy" else "current"
    return RotationMap(spec.block_size, spec.exact, spec.terms, series, spec.scaled, spec.eps)


def rotation_of(spec: RotationSpec, v: Tensor, known: Tensor | None = None) -> Tensor:
    """``spec.rotation(v)`` on the fast path.

    Shapes: ``(rows, b (b - 1) / 2)`` -> ``(rows, b, b)``. ``known`` is the result when only the gradient is missing.
    """
    return map_of(spec)(v, known)
