"""Square maps of features that are never written out as a matrix, only multiplied with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor

from orthotune.rotation.on_weight import rotate_blocks

#: ``X BD(R)`` for blocks ``R`` ``(n, b, b)``; the kernels have a faster one than the default
Product = Callable[[Tensor, Tensor], Tensor]


def block_product(X: Tensor, R: Tensor) -> Tensor:
    """``X BD(R)`` in plain operations; ``X`` ``(..., n b)``, ``R`` ``(n, b, b)``.

    Example:
        >>> block_product(torch.tensor([1.0, 0.0]), torch.tensor([[[0.0, 1.0], [-1.0, 0.0]]]))
        tensor([0., 1.])
    """
    return rotate_blocks(X, R.mT)


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
        A, B = self.A.to(X.dtype), self.B.to(X.dtype)
        if X.dim() == 2 and A.dim() == 2:
            return torch.addmm(X, X @ A.mT, B)
        return X + (X @ A.mT) @ B

    def inverse(self) -> LowRank:
        # Woodbury: (I + Aᵀ B)⁻¹ = I - Aᵀ (I + B Aᵀ)⁻¹ B
        small = self.B @ self.A.mT
        small = small + torch.eye(small.shape[-1], dtype=small.dtype, device=small.device)
        return LowRank(self.A, -torch.linalg.solve(small, self.B))

    def at(self, index: int) -> LowRank:
        return LowRank(self.A[index], self.B[index])


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
