"""Square maps of features that are never written out as a matrix, only multiplied with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from orthotune.rotation.on_weight import rotate_blocks

#: ``X BD(R)`` for blocks ``R`` ``(n, b, b)`` of which each has half its features so many half blocks farther on; the
#: kernels have a faster one than the default
Product = Callable[[Tensor, Tensor, int], Tensor]


def block_product(X: Tensor, R: Tensor, groups: int = 1) -> Tensor:
    """``X BD(R)`` in plain operations; see :class:`Stage` for ``groups``.

    Shapes: ``X`` ``(..., n b)``, ``R`` ``(n, b, b)``, or stacks ``(copies, rows, n b)`` and ``(copies, n, b, b)``.

    Example:
        >>> block_product(torch.tensor([1.0, 0.0]), torch.tensor([[[0.0, 1.0], [-1.0, 0.0]]]))
        tensor([0., 1.])
    """
    half = R.shape[-1] // 2
    if groups > 1:
        X = X.unflatten(-1, (-1, 2, groups, half)).transpose(-3, -2).flatten(-4)
    if R.dim() == 4:
        runs = X.unflatten(-1, R.shape[-3:-1]).transpose(-3, -2)
        X = (runs @ R.to(X.dtype)).transpose(-3, -2).flatten(-2)
    else:
        X = rotate_blocks(X, R.mT)
    return X if groups == 1 else X.unflatten(-1, (-1, groups, 2, half)).transpose(-3, -2).flatten(-4)


class Operator:
    """A map ``M`` of ``features`` features. In products it stands where one block of that size could stand.

    A stack of maps, one for each expert, has one further dimension in front in each of its tensors.
    """

    @property
    def features(self) -> int:
        """Size of the map."""
        raise NotImplementedError

    @property
    def copies(self) -> int:
        """Number of maps in a stack; 1 for a single one."""
        return 1

    @property
    def mT(self) -> Operator:
        """The transposed map."""
        raise NotImplementedError

    def right(self, X: Tensor, product: Product = block_product) -> Tensor:
        """``X M`` in the dtype of ``X``; ``(..., features)``."""
        raise NotImplementedError

    def inverse(self) -> Operator:
        """The map that undoes this one."""
        raise NotImplementedError

    def at(self, index: int) -> Operator:
        """One map of a stack."""
        raise NotImplementedError

    def left(self, W: Tensor, product: Product = block_product) -> Tensor:
        """``M W``; ``(..., features, columns)``."""
        return self.mT.right(W.mT, product).mT

    def dense(self) -> Tensor:
        """The matrix ``(..., features, features)`` in float64."""
        one = torch.eye(self.features, dtype=torch.float64, device=self.tensors()[0].device)
        return self.right(one if self.copies == 1 else one.expand(self.copies, -1, -1))

    def tensors(self) -> Sequence[Tensor]:
        """The tensors that it is made of."""
        found = (getattr(self, name) for name in self.__dict__)
        return [value for value in found if isinstance(value, Tensor)]

    # What the code for blocks asks of a tensor of them.

    @property
    def shape(self) -> torch.Size:
        """That of one dense block: ``(1, features, features)``, or with the number of copies in front."""
        own = (1, self.features, self.features)
        return torch.Size(own if self.copies == 1 else (self.copies, *own))

    def dim(self) -> int:
        """Dimensions of :attr:`shape`."""
        return len(self.shape)

    def __getitem__(self, index: int) -> Operator:
        return self.at(index)


@dataclass(frozen=True, eq=False)
class LowRank(Operator):
    """``I + Aᵀ B``: the identity and a product of two factors.

    Shapes: ``A`` and ``B`` ``(..., r, n)``.

    Example:
        >>> swap = LowRank(torch.tensor([[1.0, -1.0]]), torch.tensor([[-1.0, 1.0]]))
        >>> swap.right(torch.tensor([3.0, 4.0]))
        tensor([4., 3.])
    """

    A: Tensor
    B: Tensor

    @property
    def features(self) -> int:
        return self.A.shape[-1]

    @property
    def copies(self) -> int:
        return self.A.shape[0] if self.A.dim() == 3 else 1

    @property
    def mT(self) -> LowRank:
        return LowRank(self.B, self.A)

    def right(self, X: Tensor, product: Product = block_product) -> Tensor:
        if self.A.dim() == 2 and few(X, self.A):
            rows = X.reshape(-1, X.shape[-1]).to(self.A.dtype)
            return torch.addmm(rows, rows @ self.A.mT, self.B).to(X.dtype).view(X.shape)
        A, B = self.A.to(X.dtype), self.B.to(X.dtype)
        if A.dim() == 2:
            rows = X.reshape(-1, X.shape[-1])
            return torch.addmm(rows, rows @ A.mT, B).view(X.shape)
        return X + (X @ A.mT) @ B

    def left(self, W: Tensor, product: Product = block_product) -> Tensor:
        A, B = self.A.to(W.dtype), self.B.to(W.dtype)
        if W.dim() == 2 and A.dim() == 2:
            return torch.addmm(W, A.mT, B @ W)
        return W + A.mT @ (B @ W)

    def inverse(self) -> LowRank:
        # Woodbury: (I + Aᵀ B)⁻¹ = I - Aᵀ (I + B Aᵀ)⁻¹ B
        small = self.B @ self.A.mT
        small = small + torch.eye(small.shape[-1], dtype=small.dtype, device=small.device)
        return LowRank(self.A, -torch.linalg.solve(small, self.B))

    def at(self, index: int) -> LowRank:
        return LowRank(self.A[index], self.B[index])


@dataclass(frozen=True, eq=False)
class Within(Operator):
    """``I + Aᵀ (S - I) A``: a small map ``S`` of the coordinates in the rows of ``A``, the identity beside them.

    Shapes: ``A`` ``(..., r, n)``, ``S`` ``(..., r, r)``. Unlike :class:`LowRank` of ``A`` and ``(S - I) A`` it makes no
    product of the size of ``A`` when ``S`` changes, as in every training step.

    Example:
        >>> Within(torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0]])).right(torch.tensor([3.0, 4.0]))
        tensor([3., 8.])
    """

    A: Tensor
    S: Tensor

    @property
    def features(self) -> int:
        return self.A.shape[-1]

    @property
    def copies(self) -> int:
        return self.A.shape[0] if self.A.dim() == 3 else 1

    @property
    def mT(self) -> Within:
        return Within(self.A, self.S.mT)

    @property
    def low_rank(self) -> LowRank:
        """The same map with two factors."""
        return LowRank(self.A, self.S @ self.A - self.A)

    def right(self, X: Tensor, product: Product = block_product) -> Tensor:
        A, S = self.A.to(X.dtype), self.S.to(X.dtype)
        inside = X @ A.mT
        if X.dim() == 2 and A.dim() == 2:
            return torch.addmm(X, torch.addmm(inside, inside, S, beta=-1), A)
        return X + (inside @ S - inside) @ A

    def left(self, W: Tensor, product: Product = block_product) -> Tensor:
        A, S = self.A.to(W.dtype), self.S.to(W.dtype)
        inside = A @ W
        return W + A.mT @ (S @ inside - inside)

    def inverse(self) -> LowRank:
        return self.low_rank.inverse()

    def at(self, index: int) -> Within:
        return Within(self.A[index], self.S[index])


@dataclass(frozen=True, eq=False)
class BlockLowRank(Operator):
    """``BD(I + A_iᵀ B_i)``: each run of features has a map of low rank beside the identity.

    Shapes: ``A`` and ``B`` ``(..., blocks, k, b)``.

    Example:
        >>> one = torch.tensor([[[1.0, -1.0]], [[1.0, 1.0]]])
        >>> BlockLowRank(one, -one).right(torch.tensor([3.0, 4.0, 5.0, 6.0]))
        tensor([ 4.,  3., -6., -5.])
    """

    A: Tensor
    B: Tensor

    @property
    def features(self) -> int:
        return self.A.shape[-3] * self.A.shape[-1]

    @property
    def copies(self) -> int:
        return self.A.shape[0] if self.A.dim() == 4 else 1

    @property
    def mT(self) -> BlockLowRank:
        return BlockLowRank(self.B, self.A)

    def right(self, X: Tensor, product: Product = block_product) -> Tensor:
        A, B = self.A.to(X.dtype), self.B.to(X.dtype)
        flat = X if self.copies > 1 else X.reshape(-1, X.shape[-1])
        runs = flat.unflatten(-1, (A.shape[-3], A.shape[-1])).transpose(-3, -2)
        return (flat + ((runs @ A.mT) @ B).transpose(-3, -2).flatten(-2)).view(X.shape)

    def inverse(self) -> BlockLowRank:
        small = self.B @ self.A.mT
        small = small + torch.eye(small.shape[-1], dtype=small.dtype, device=small.device)
        return BlockLowRank(self.A, -torch.linalg.solve(small, self.B))

    def at(self, index: int) -> BlockLowRank:
        return BlockLowRank(self.A[index], self.B[index])


@dataclass(frozen=True, eq=False)
class Stage(Operator):
    """Blocks ``R`` between a permutation of the features and its inverse: half blocks of ``groups`` change places.

    Shapes: ``R`` ``(..., n, b, b)``. With ``groups`` 1 nothing changes places.

    Example:
        >>> quarter = torch.tensor([[[0.0, 1.0], [-1.0, 0.0]]]).repeat(2, 1, 1)
        >>> Stage(quarter, 2).right(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        tensor([-3., -4.,  1.,  2.])
    """

    R: Tensor
    groups: int = 1

    @property
    def features(self) -> int:
        return self.R.shape[-3] * self.R.shape[-1]

    @property
    def copies(self) -> int:
        return self.R.shape[0] if self.R.dim() == 4 else 1

    @property
    def mT(self) -> Stage:
        return Stage(self.R.mT, self.groups)

    def right(self, X: Tensor, product: Product = block_product) -> Tensor:
        return product(X, self.R, self.groups)

    def inverse(self) -> Stage:
        return Stage(torch.linalg.inv(self.R), self.groups)

    def at(self, index: int) -> Stage:
        return Stage(self.R[index], self.groups)


@dataclass(frozen=True, eq=False)
class Chain(Operator):
    """``M_1 M_2 ..``: the first one meets ``X`` first.

    Example:
        >>> swap = LowRank(torch.tensor([[1.0, -1.0]]), torch.tensor([[-1.0, 1.0]]))
        >>> Chain((swap, swap)).right(torch.tensor([3.0, 4.0]))
        tensor([3., 4.])
    """

    parts: tuple[Operator, ...]

    @property
    def features(self) -> int:
        return self.parts[0].features

    @property
    def copies(self) -> int:
        return self.parts[0].copies

    @property
    def mT(self) -> Chain:
        return Chain(tuple(part.mT for part in reversed(self.parts)))

    def right(self, X: Tensor, product: Product = block_product) -> Tensor:
        for part in self.parts:
            X = part.right(X, product)
        return X

    def inverse(self) -> Chain:
        return Chain(tuple(part.inverse() for part in reversed(self.parts)))

    def at(self, index: int) -> Chain:
        return Chain(tuple(part.at(index) for part in self.parts))

    def tensors(self) -> Sequence[Tensor]:
        return [tensor for part in self.parts for tensor in part.tensors()]


@dataclass(frozen=True, eq=False)
class Pairs(Operator):
    """Planes of two features: in each group, feature ``i`` and ``i + group / 2``.

    ``x_1' = c_1 x_1 + d_2 x_2`` and ``x_2' = c_2 x_2 + d_1 x_1``, where ``d_i`` is the share of ``x_i`` that goes to
    the other feature of its plane.

    Shapes: ``c`` and ``d`` ``(..., n / group, 2, group / 2)``.

    Example:
        >>> c, d = torch.zeros(1, 2, 1), torch.tensor([[[1.0], [-1.0]]])
        >>> Pairs(c, d).right(torch.tensor([3.0, 4.0]))
        tensor([-4.,  3.])
    """

    c: Tensor
    d: Tensor

    @property
    def features(self) -> int:
        return self.c.shape[-3:].numel()

    @property
    def copies(self) -> int:
        return self.c.shape[0] if self.c.dim() == 4 else 1

    @property
    def mT(self) -> Pairs:
        return Pairs(self.c, self.d.flip(-2))

    def right(self, X: Tensor, product: Product = block_product) -> Tensor:
        (c1, c2), (d1, d2) = self._split(self.c, X), self._split(self.d, X)
        x1, x2 = X.unflatten(-1, self.c.shape[-3:]).unbind(-2)  # views: nothing but X is kept for a backward
        return torch.stack([x1 * c1 + x2 * d2, x2 * c2 + x1 * d1], -2).flatten(-3)

    def _split(self, part: Tensor, X: Tensor) -> tuple[Tensor, ...]:
        halves = part.to(X.dtype).unbind(-2)
        return halves if self.copies == 1 else tuple(half.unsqueeze(1) for half in halves)

    def blocks(self) -> Tensor:
        """The same map as blocks, ``(..., n / group, group, group)``: four diagonals in each."""
        parts = torch.stack([torch.stack([self.c[..., 0, :], self.d[..., 0, :]], -2),
                             torch.stack([self.d[..., 1, :], self.c[..., 1, :]], -2)], -3)  # fmt: skip
        group = 2 * self.c.shape[-1]  # from the half of a feature, to the half, from, to
        return torch.diag_embed(parts).transpose(-3, -2).reshape(*self.c.shape[:-2], group, group)

    def determinant(self) -> Tensor:
        """Of each plane, ``(..., n / group, 1, group / 2)``."""
        (c1, c2), (d1, d2) = self.c.split(1, -2), self.d.split(1, -2)
        return c1 * c2 - d1 * d2

    def inverse(self) -> Pairs:
        found = self.determinant()
        return Pairs(self.c.flip(-2) / found, -self.d / found)

    def at(self, index: int) -> Pairs:
        return Pairs(self.c[index], self.d[index])


@dataclass(frozen=True, eq=False)
class Blended(Operator):
    """``I + t (M - I)``.

    Example:
        >>> swap = LowRank(torch.tensor([[1.0, -1.0]]), torch.tensor([[-1.0, 1.0]]))
        >>> Blended(swap, 0.5).right(torch.tensor([3.0, 4.0]))
        tensor([3.5000, 3.5000])
    """

    operator: Operator
    t: float

    @property
    def features(self) -> int:
        return self.operator.features

    @property
    def copies(self) -> int:
        return self.operator.copies

    @property
    def mT(self) -> Blended:
        return replace(self, operator=self.operator.mT)

    def right(self, X: Tensor, product: Product = block_product) -> Tensor:
        return torch.lerp(X, self.operator.right(X, product), self.t)

    def at(self, index: int) -> Blended:
        return replace(self, operator=self.operator.at(index))

    def tensors(self) -> Sequence[Tensor]:
        return self.operator.tensors()


#: largest block that a map of low rank in each block is written out to
WRITTEN_OUT = 64


def quicker(operator: Operator) -> Operator:
    """The same map in the form that is quickest to multiply with, for one that is kept for many calls.

    Example:
        >>> type(quicker(BlockLowRank(torch.ones(2, 1, 4), torch.ones(2, 1, 4)))).__name__
        'Stage'
    """
    if isinstance(operator, BlockLowRank) and operator.A.shape[-1] <= WRITTEN_OUT:
        return Stage(blocks_of(operator, operator.A.shape[-1]))
    if isinstance(operator, Pairs) and 2 * operator.c.shape[-1] <= WRITTEN_OUT:
        return Stage(operator.blocks())
    return operator.low_rank if isinstance(operator, Within) else operator


def blocks_of(operator: Operator, size: int) -> Tensor:
    """The blocks ``(..., n / size, size, size)`` of a map that keeps runs of ``size`` features apart.

    Example:
        >>> blocks_of(BlockLowRank(torch.ones(2, 1, 1), torch.ones(2, 1, 1)), 1).flatten()
        tensor([2., 2.])
    """
    like, count = operator.tensors()[0], operator.features // size
    rows = torch.eye(size, dtype=like.dtype, device=like.device).repeat(1, count)  # unit vectors of every run at once
    rows = rows if operator.copies == 1 else rows.expand(operator.copies, -1, -1)
    return operator.right(rows).unflatten(-1, (count, size)).transpose(-3, -2)


def cast_once(operator: Operator, dtype: torch.dtype) -> Operator:
    """A map that is kept for inputs of a dtype, with factors of many rows in it: they are read in every call.

    Example:
        >>> cast_once(LowRank(torch.ones(80, 2), torch.ones(80, 2)), torch.bfloat16).A.dtype
        torch.bfloat16
    """
    wide = isinstance(operator, LowRank) and operator.A.shape[-2] > WRITTEN_OUT
    return mapped(operator, lambda part: part.to(dtype)) if wide and dtype.itemsize == 2 else operator


def few(X: Tensor, A: Tensor) -> bool:
    """Whether rows of 16 bits are so few that a product in float32 is quicker than a copy of a factor in 16 bits."""
    return X.element_size() == 2 and A.element_size() > 2 and X.numel() <= A.numel() and not torch.is_grad_enabled()


def mapped(part: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """An operator with a function applied to each tensor that it is made of.

    Example:
        >>> mapped(LowRank(torch.ones(1, 2), torch.ones(1, 2)), torch.neg).A
        tensor([[-1., -1.]])
    """
    if isinstance(part, Tensor):
        return change(part)
    if isinstance(part, tuple):
        return tuple(mapped(one, change) for one in part)
    if isinstance(part, Operator):
        assert is_dataclass(part)
        return replace(part, **{field.name: mapped(getattr(part, field.name), change) for field in fields(part)})
    return part
