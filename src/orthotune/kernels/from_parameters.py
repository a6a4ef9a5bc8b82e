"""Rotations from the packed parameters that a file or a layer holds: the fast path of ``RotationSpec.rotation``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from orthotune.errors import OrthotuneError
from orthotune.kernels.autograd import gradients_again, looked_through
from orthotune.kernels.by_blocks import exact_by_blocks, full_float32
from orthotune.kernels.choose import Path, choose, started
from orthotune.rotation.cayley import cayley, cayley_backward, cayley_forward
from orthotune.rotation.packing import pack, unpack
from orthotune.rotation.spec import RotationSpec


class _ExactRotation(torch.autograd.Function):
    """The gradient of rotations that are known, those of many layers in one batch: ``R`` is all that it needs.

    ``R`` is no saved tensor, which a backward would free: one node serves every forward until a parameter changes.
    """

    @staticmethod
    def forward(ctx: Any, R: Tensor, scale: float, *stored: Tensor) -> tuple[Tensor, ...]:
        ctx.R, ctx.scale, ctx.stored = R, scale, stored
        compiled = torch.compiler.is_compiling()
        ctx.versions = [None if compiled or v.is_inference() else v._version for v in stored]
        ctx.rows = [v.shape[0] for v in stored]
        ctx.set_materialize_grads(False)
        return R.split(ctx.rows) if len(stored) > 1 else (R.view_as(R),)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            return None, None, *_again(ctx, grads)
        arrived = {i: grad for i, grad in enumerate(grads) if grad is not None}
        found: list[Tensor | None] = [None] * len(grads)
        if arrived:
            R, rows = ctx.R, [ctx.rows[i] for i in arrived]
            if len(arrived) < len(grads):  # a layer that this forward passed by
                R = torch.cat([part for i, part in enumerate(R.split(ctx.rows)) if i in arrived])
            grad = torch.cat([*arrived.values()]) if len(arrived) > 1 else next(iter(arrived.values()))
            dv = _exact_backward(R, grad)
            dv = dv if ctx.scale == 1 else dv.mul_(ctx.scale)
            for i, own in zip(arrived, dv.split(rows), strict=True):
                found[i] = own
        return None, None, *found


def _again(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """The gradients with a graph: from the parameters once more, which must be what they were."""
    if any(seen is not None and seen != v._version for seen, v in zip(ctx.versions, ctx.stored, strict=True)):
        raise OrthotuneError(
            "a second derivative of a rotation", got="a parameter that was written to after the forward",
            do="Compute the derivatives before the optimizer steps",
        )  # fmt: skip
    size, scale = ctx.R.shape[-1], ctx.scale
    return gradients_again(
        lambda *stored: [cayley(unpack(v if scale == 1 else v * scale, size)) for v in stored],
        ctx.stored, grads, [v.requires_grad for v in ctx.stored],
    )  # fmt: skip


def _exact_backward(R: Tensor, grad: Tensor) -> Tensor:
    size = R.shape[-1]
    if _path(R, size) == "triton":
        from orthotune.kernels import triton_cayley

        found = _started(R, size, lambda: triton_cayley.exact_backward(R, grad))
        if found is not None:
            return found
    if torch.is_autocast_enabled(grad.device.type):
        with torch.autocast(grad.device.type, enabled=False):
            return _exact_backward(R, grad)
    with full_float32(R.device):
        dQ = cayley_backward(R, grad)
    return pack(dQ).sub_(pack(dQ, lower=True))


def _exact(v: Tensor, block_size: int) -> Tensor:
    path, found = _path(v, block_size), None
    # Triton is imported where it runs: it is optional, and slow to import.
    if path == "triton":
        from orthotune.kernels import triton_cayley

        found = _started(v, block_size, lambda: triton_cayley.exact_forward(v, block_size))
    elif path == "products":
        from orthotune.kernels import triton_cayley

        found = _started(v, block_size, lambda: exact_by_blocks(v, block_size, triton_cayley.small_inverse))
    return cayley_forward(unpack(v, block_size)) if found is None else found


def _path(stored: Tensor, block_size: int) -> Path:
    return choose("from_parameters", stored.device, stored.dtype, block_size).path if stored.numel() else "torch"


def _started(stored: Tensor, block_size: int, launch: Callable[[], Tensor]) -> Tensor | None:
    return started("from_parameters", stored.device, stored.dtype, block_size, launch)


def exact_rotation(v: Tensor, block_size: int, known: Tensor | None = None) -> Tensor:
    """Exact rotation ``cayley(unpack(v))``.

    Shapes: ``(..., b (b - 1) / 2)`` -> ``(..., b, b)``; float32 or float64. ``known`` is the result when it has been
    computed before: only the gradient is added.

    Example:
        >>> exact_rotation(torch.zeros(1, 3), 3)[0].trace().item()
        3.0
    """
    if torch.is_autocast_enabled(v.device.type):
        with torch.autocast(v.device.type, enabled=False):
            return exact_rotation(v, block_size, known)
    if v.requires_grad and torch.is_grad_enabled():
        with torch.no_grad():
            R = _exact(v, block_size) if known is None else known
        return _ExactRotation.apply(R, 1.0, v)[0]
    return _exact(v, block_size) if known is None else known


def rotation_of(spec: RotationSpec, v: Tensor, known: Tensor | None = None) -> Tensor:
    """``spec.rotation(v)`` by the fastest kernel.

    Args:
        spec: the map, with its block size.
        v: stored parameters ``(..., rows, b (b - 1) / 2)``.
        known: the result when it has been computed before, so that only the gradient is added; a Neumann polynomial
            is computed again.

    Returns:
        Rotations ``(..., rows, b, b)``; float32, or float64 for float64 values.

    Example:
        >>> rotation_of(RotationSpec(block_size=2), torch.zeros(3, 1)).shape
        torch.Size([3, 2, 2])
    """
    if looked_through():
        with torch.autocast(v.device.type, enabled=False):
            return spec.from_skew(spec.skew(v), plain=True)
    if spec.exact:
        return exact_rotation(spec.vector(v), spec.block_size, known)
    return spec.from_skew(spec.skew(v))


def connect(spec: RotationSpec, stored: Sequence[Tensor], R: Tensor) -> tuple[Tensor, ...]:
    """Cached exact rotations of several layers, each with the gradient to its own stored parameters, in one node.

    Shapes: ``stored`` ``(rows_i, n)``, ``R`` ``(sum of rows, b, b)``; returns views ``(rows_i, b, b)`` of ``R``.
    """
    found: tuple[Tensor, ...] = _ExactRotation.apply(R, spec.scale, *stored)
    return found
