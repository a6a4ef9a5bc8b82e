"""Blocks of one side of a weight: the products, the scale of the rows and the strengths of tools other than this."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

import torch
from torch import Tensor

from orthotune.errors import AdapterFileError, OrthotuneError, UnsupportedLayerError
from orthotune.rotation.spec import Side

#: What a strength ``s`` other than 1 does in the tool that trained the adapter. ``linear``: ``W + s (W' - W)``.
#: ``rotation``: the rotation is blended with the identity, the scale of the rows stays as it is. ``stages``: each stage
#: of a butterfly is blended with the identity; ``first_stage``: only the first one. ``none``: that tool knows no
#: strength, and it means ``linear`` here.
Blend = Literal["linear", "rotation", "stages", "first_stage", "none"]


@dataclass(frozen=True)
class KernelNeeds:
    """What a kernel must be compiled for: block size, dtype of the blocks, and how many products follow each other."""

    block_size: int
    dtype: torch.dtype
    stages: int = 1


def rotate_blocks(X: Tensor, R: Tensor) -> Tensor:
    """``X BD(R)ᵀ``: each run of ``b`` columns of ``X`` is multiplied by the transpose of its block.

    Shapes: ``X`` ``(..., n b)``, ``R`` ``(n, b, b)`` or ``(1, b, b)`` for one block that is used for every run.

    Example:
        >>> rotate_blocks(torch.tensor([[1.0, 0.0]]), torch.tensor([[[0.0, -1.0], [1.0, 0.0]]]))
        tensor([[0., 1.]])
    """
    b = R.shape[-1]
    runs = X.reshape(-1, X.shape[-1] // b, b).transpose(0, 1)  # one product for each block, not for each row
    return (runs @ R.mT.to(X.dtype)).transpose(0, 1).reshape(X.shape)


def lifted(weight: Tensor) -> Tensor:
    """The weight in float32, or in float64 for a float64 weight; differentiable."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def rotated_inputs(rows: Callable[[Tensor], Tensor], weight: Tensor, channels: bool) -> Tensor:
    """A weight after ``rows``, which maps the last dimension of a matrix, as ``(out, in * kernel)``.

    Args:
        rows: ``X -> X Mᵀ``, for any number of leading dimensions.
        weight: ``(out, in)`` or ``(out, in, *kernel)``.
        channels: ``M`` maps ``in``, the same way at every point of the kernel; otherwise all of ``in * kernel``.

    Example:
        >>> rotated_inputs(lambda X: X.flip(-1), torch.tensor([[[1, 2], [3, 4]]]), channels=True)
        tensor([[3, 4, 1, 2]])
    """
    if channels and weight.dim() > 2:
        return rows(weight.flatten(2).mT).mT.flatten(1)
    return rows(weight.flatten(1))


def rows_scaled(matrix: Tensor, scale: Tensor | None) -> Tensor:
    """Multiply each row by its scale; without a scale the matrix is returned.

    Raises:
        AdapterFileError: the scale has not one value per row.
    """
    if scale is None:
        return matrix
    if scale.numel() != matrix.shape[0]:
        refuse_misfit(matrix.shape[0], scale.numel(), matrix.shape, "out")
    return matrix * scale.to(matrix.dtype).view(-1, 1)


def at_strength(W: Tensor, rotated: Tensor, scale: Tensor | None, blend: Blend, t: float) -> Tensor:
    """The rotated matrix with its rows scaled, at the strength ``t`` as the file's own tool means it.

    Shapes: ``W`` and ``rotated`` ``(out, in)``, ``scale`` ``(out,)`` or None; returns ``(out, in)``.
    """
    if blend == "rotation" and t != 1:
        rotated = torch.lerp(W, rotated, t)
    new = rows_scaled(rotated, scale)
    return torch.lerp(W, new, t) if blend in ("linear", "none") and t != 1 else new


def on_features(rows: Callable[[Tensor, bool], Tensor], side: Side, scale: Tensor | None, x: Tensor) -> Tensor:
    """What a map ``M`` of one side does with a layer's input (``x M``) or with its output (``y Mᵀ``, then the scale).

    Args:
        rows: ``X Mᵀ``, or ``X M`` with True.
        side: which of the two ``x`` is.
        scale: of the output neurons ``(out,)``, or None.
        x: ``(..., features)``.

    Raises:
        UnsupportedLayerError: a map of the inputs with a scale of the outputs, which no map of ``x`` alone is.
    """
    if side == "out":
        return rows(x, False) if scale is None else rows(x, False) * scale.to(x.dtype)
    if scale is not None:
        refuse_action("a rotation of the inputs with a scale of the outputs")
    return rows(x, True)


def refuse_action(what: str) -> NoReturn:
    """Raise an UnsupportedLayerError: the map exists on the weight only."""
    raise UnsupportedLayerError(
        "the action on a layer's input or output", got=what, needed="a map of one side's features",
        do="Apply it to the weight",
    )  # fmt: skip


def refuse_scale(scale: Tensor | None, what: str) -> None:
    """Raise an OrthotuneError when the rows are scaled, too: what is asked for is another kind of map then."""
    if scale is not None:
        raise OrthotuneError(what, got="a scale of the rows beside the blocks", needed="blocks alone")


def refuse_misfit(features: int, needed: int, shape: Sequence[int], side: str) -> NoReturn:
    """Raise an AdapterFileError that describes the weight that the blocks fit."""
    raise AdapterFileError(
        f"the adapter does not fit a weight of shape {list(shape)}",
        got=f"{features} features on its {side} side",
        needed=f"{needed}",
        do="Name the base that the adapter was trained on",
    )
