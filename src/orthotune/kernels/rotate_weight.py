"""Rotate a weight in runs of rows, without a dense rotation or a float32 copy of the entire weight."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from orthotune.kernels.rotate import rotate, rotate_rows, rotate_stack
from orthotune.kernels.rotate_once import RUN, rotate_once
from orthotune.rotation.operator import Operator


class Step(NamedTuple):
    """One factor of a rotated weight ``(..., out, in)``.

    ``columns`` is ``W BD(R)`` and ``rows`` is ``BD(R) W``, with ``R`` ``(..., blocks or 1, b, b)``; ``scale_rows`` and
    ``scale_columns`` multiply by a vector, ``(copies * out,)`` and ``(in,)``. An operator stands for one block that is
    as large as the side that it maps.
    """

    kind: Literal["columns", "rows", "scale_rows", "scale_columns"]
    factor: Tensor | Operator
    #: of a kernel whose channels ``columns`` rotates, the same way at each of them; the columns are ``(in, points)``
    points: int = 1

    @property
    def size(self) -> int:
        """Features of a block on the side that the step rotates."""
        return int(self.factor.shape[-1]) * self.points

    def act(self, W: Tensor) -> Tensor:
        """The entire of ``W`` after this step, differentiable, in the dtype of ``W``."""
        if self.kind == "columns" and self.points > 1:
            return rotate(W.unflatten(-1, (-1, self.points)).mT, self.factor).mT.flatten(-2)
        if self.kind == "columns":
            return rotate_stack(W, self.factor)
        if self.kind == "rows":
            return rotate_rows(W, self.factor)
        assert isinstance(self.factor, Tensor)
        return W * (self.factor.view(*W.shape[:-1], 1) if self.kind == "scale_rows" else self.factor)

    def within(self, rows: slice, columns: slice) -> Step:
        """The step for a window of one matrix, whose edges are edges of blocks."""
        window = columns if self.kind.endswith("columns") else rows
        if isinstance(self.factor, Operator):
            return self
        # Never by an index: torch 2.13 keeps the interpreter's lock while it takes a slice, and waits for ever where
        # another thread that holds the parameter's own lock, as for a gradient, waits for the interpreter's.
        if self.factor.dim() == 1:
            return Step(self.kind, self.factor.narrow(0, window.start, window.stop - window.start))
        if self.factor.shape[-3] == 1:  # one shared block
            return self
        start, stop = window.start // self.size, window.stop // self.size
        return self._replace(factor=self.factor.narrow(0, start, stop - start))

    def of_copy(self, index: int, count: int) -> Step:
        """The step for one matrix of a stack of ``count``, as for a matrix that stands alone.

        Example:
            >>> Step("rows", torch.zeros(3, 2, 4, 4)).of_copy(1, 3).factor.shape
            torch.Size([2, 4, 4])
        """
        if isinstance(self.factor, Tensor) and self.kind == "scale_rows":
            return Step(self.kind, self.factor.view(count, -1)[index])
        return Step(self.kind, self.factor[index]) if self.factor.dim() == 4 else self


def rotate_full(W: Tensor, steps: Sequence[Step]) -> Tensor:
    """``W`` after all steps at once, differentiable, in float32 (float64 for float64 weights).

    For training with a single rotation the result is already rounded to the dtype of ``W``, and nothing of its size is
    kept for the backward.

    Example:
        >>> rotate_full(torch.ones(1, 2), [Step("scale_columns", torch.tensor([1.0, 2.0]))])
        tensor([[1., 2.]])
    """
    first = steps[0].factor if len(steps) == 1 and steps[0].points == 1 else None
    if isinstance(first, Tensor) and first.dim() > 1 and first.requires_grad and torch.is_grad_enabled():
        return rotate_once(W, first, steps[0].kind == "columns")
    W = W.to(torch.promote_types(W.dtype, torch.float32))
    for step in steps:
        W = step.act(W)
    return W


def rotate_weight(W: Tensor, steps: Sequence[Step], out: Tensor | None = None, run: int = RUN) -> Tensor:
    """``W`` after all steps in its own dtype and layout: computed in float32 run by run, rounded once, no gradient.

    Args:
        W: ``(out, in)`` or ``(copies, out, in)``, with any strides.
        steps: in the order in which they act.
        out: where the result goes, of the same shape; ``W`` itself is allowed. A new tensor when None.
        run: number of elements that are processed at once; increased where a block of a step needs more.

    Example:
        >>> rotate_weight(torch.ones(1, 2).bfloat16(), [Step("scale_rows", torch.tensor([3.0]))])
        tensor([[3., 3.]], dtype=torch.bfloat16)
    """
    out = torch.empty_like(W, requires_grad=False) if out is None else out
    with torch.no_grad(), torch.autocast(W.device.type, enabled=False):
        if W.dim() == 2:
            _rotate_matrix(W, steps, out, run)
        # One by one, however small: an expert must come out the same when its file holds it alone.
        for index in range(W.shape[0] if W.dim() == 3 else 0):
            _rotate_matrix(W[index], [step.of_copy(index, W.shape[0]) for step in steps], out[index], run)
    return out


def _rotate_matrix(W: Tensor, steps: Sequence[Step], out: Tensor, run: int) -> None:
    for rows, columns in _windows(W, steps, run):
        own = [step.within(rows, columns) for step in steps]
        here, there = W[rows, columns], out[rows, columns]
        R, plain = (own[-1].factor, own[-1].points == 1) if own else (None, False)
        if W.device.type == "cpu" and isinstance(R, Tensor) and own[-1].kind == "columns" and R.shape[0] > 1 and plain:
            # The last product is rounded out of its own layout: no float32 copy in between.
            wide = rotate_full(here, own[:-1])
            blocks = (R.shape[0], R.shape[-1])
            product = torch.bmm(wide.unflatten(1, blocks).transpose(0, 1), R.to(wide.dtype))
            there.unflatten(1, blocks).transpose(0, 1).copy_(product)
        else:
            there.copy_(rotate_full(here, own))


def _windows(W: Tensor, steps: Sequence[Step], run: int) -> Iterator[tuple[slice, slice]]:
    """Runs of rows that split no block of a ``rows`` step; also of columns, where such rows have too many elements."""
    count, width = W.shape
    height = math.lcm(*(step.size for step in steps if step.kind == "rows"))
    across = math.lcm(*(step.size for step in steps if step.kind == "columns"))
    taken = width
    if height * width > run:
        taken = min(width, max(run // height // across, 1) * across)
    high = max(run // max(width, 1) // height, 1) * height
    for top in range(0, count, high):
        for left in range(0, width, taken):
            yield slice(top, min(top + high, count)), slice(left, min(left + taken, width))
