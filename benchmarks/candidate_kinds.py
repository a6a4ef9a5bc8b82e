"""The parametrizations that ``rotation_candidates.py`` trains: each maps a frozen weight ``(out, in)`` to a new weight.

At strength 0 each gives the frozen weight; in between, the generator of a rotation, or the difference, is scaled.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from candidate_settings import Settings


def skew(packed: Tensor, size: int) -> Tensor:
    """Skew-symmetric blocks ``(blocks, size, size)`` from their strict upper triangles."""
    rows, columns = torch.triu_indices(size, size, 1)
    Q = packed.new_zeros(packed.shape[0], size, size)
    Q[:, rows, columns] = packed
    return Q - Q.mT


class Rotation(nn.Module):
    """Block rotations of ``features`` coordinates by the Cayley map; ``order`` seeds a permutation before them."""

    def __init__(self, features: int, size: int, order: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        size = next(size for size in range(min(size, features), 0, -1) if features % size == 0)
        self.size, self.dropout, self.strength = size, dropout, 1.0
        self.packed = nn.Parameter(torch.zeros(features // size, size * (size - 1) // 2))
        shuffle = None if order is None else torch.randperm(features, generator=torch.Generator().manual_seed(order))
        self.shuffle = shuffle
        self.departure: Tensor | None = None

    def blocks(self) -> Tensor:
        """The rotations ``(blocks, size, size)``, times the accumulated rotation if they were re-centred."""
        identity = torch.eye(self.size)
        if self.departure is None:
            Q = skew(self.packed, self.size) * self.strength
            return torch.linalg.solve(identity + Q, identity - Q)
        Q = skew(self.packed, self.size)
        R = torch.linalg.solve(identity + Q, identity - Q) @ self.departure
        if self.strength == 1:
            return R
        Q = torch.linalg.solve(identity + R, identity - R) * self.strength
        return torch.linalg.solve(identity + Q, identity - Q)

    def forward(self, matrix: Tensor) -> Tensor:
        """``R matrix``."""
        R = self.blocks()
        if self.training and self.dropout:
            kept = (torch.rand(R.shape[0], 1, 1) > self.dropout).float()
            R = kept * R + (1 - kept) * torch.eye(self.size)
        matrix = matrix if self.shuffle is None else matrix[self.shuffle]
        rotated = torch.bmm(R, matrix.reshape(-1, self.size, matrix.shape[1])).reshape(matrix.shape)
        return rotated if self.shuffle is None else rotated[torch.argsort(self.shuffle)]


class Candidate(nn.Module):
    """A parametrization of a weight.

    Args:
        weight: the frozen weight ``(out, in)``.
        place: number of the layer.
        settings: of the run.
        basis: the directions of a subspace, or a frame, if the settings ask for one.
    """

    def __init__(self, weight: Tensor, place: int, settings: Settings, basis: Tensor | None) -> None:
        super().__init__()
        self.strength = 1.0

    def set_strength(self, strength: float) -> None:
        """Set the strength of the trained change."""
        for module in self.modules():
            if isinstance(module, (Candidate, Rotation)):
                module.strength = strength


class Blocks(Candidate):
    """OFT: block rotations of inputs, outputs or both; ``magnitude`` 1: a scale per output, 2: per input, too.

    With a frame ``P`` ``(in, in)`` as ``basis``, the inputs are multiplied by ``P R P^-1``.
    """

    def __init__(self, weight: Tensor, place: int, settings: Settings, basis: Tensor | None) -> None:
        super().__init__(weight, place, settings, basis)
        order = 1000 * settings.permuted + place if settings.permuted else None
        outputs, inputs = weight.shape
        common = {"size": settings.block_size, "dropout": settings.dropout}
        both = settings.side == "both"
        self.inputs = Rotation(inputs, order=order, **common) if both or settings.side == "in" else None
        other = None if order is None else order + 500
        self.outputs = Rotation(outputs, order=other, **common) if both or settings.side == "out" else None
        self.scale = nn.Parameter(torch.zeros(outputs)) if settings.magnitude else None
        self.input_scale = nn.Parameter(torch.zeros(inputs)) if settings.magnitude > 1 else None
        self.frame, self.inverse = (None, None) if basis is None else (basis, torch.linalg.inv(basis))

    def forward(self, weight: Tensor) -> Tensor:
        weight = weight if self.input_scale is None else weight * (1 + self.strength * self.input_scale)
        if self.inputs is not None and self.frame is not None:
            weight = self.inputs((weight @ self.frame).mT).mT @ self.inverse
        elif self.inputs is not None:
            weight = self.inputs(weight.mT).mT
        weight = weight if self.outputs is None else self.outputs(weight)
        return weight if self.scale is None else weight * (1 + self.strength * self.scale)[:, None]


class Butterfly(Candidate):
    """Several factors of block rotations of the inputs, with a perfect shuffle between them."""

    def __init__(self, weight: Tensor, place: int, settings: Settings, basis: Tensor | None) -> None:
        super().__init__(weight, place, settings, basis)
        inputs = weight.shape[1]
        self.factors = nn.ModuleList(Rotation(inputs, settings.block_size) for _ in range(settings.factors))
        size = self.factors[0].size
        shuffle = torch.arange(inputs).view(inputs // size, size).T.reshape(-1)
        self.orders = [torch.arange(inputs)]
        for _ in self.factors[1:]:
            self.orders.append(self.orders[-1][shuffle])

    def forward(self, weight: Tensor) -> Tensor:
        rotated = weight.mT
        for factor, order in zip(self.factors, self.orders, strict=True):
            rotated = factor(rotated[order])[torch.argsort(order)]
        return rotated.mT


class LowRank(Candidate):
    """A rotation by the Cayley map with the generator ``A B^T - B A^T``; ``A`` begins as in LoRA, ``B`` at 0.

    ``basis`` ``(in, width)``: ``A`` of the inputs begins as its last ``rank`` columns, of the same length.
    """

    def __init__(self, weight: Tensor, place: int, settings: Settings, basis: Tensor | None) -> None:
        super().__init__(weight, place, settings, basis)
        self.pairs = nn.ParameterDict()
        for side, features in (("in", weight.shape[1]), ("out", weight.shape[0])):
            if settings.side in (side, "both"):
                start = torch.empty(settings.rank, features)
                nn.init.kaiming_uniform_(start, a=math.sqrt(5))
                if basis is not None and side == "in":
                    start = basis[:, -settings.rank :].T / math.sqrt(3)
                self.pairs[f"{side}_a"] = nn.Parameter(start.T.contiguous())
                self.pairs[f"{side}_b"] = nn.Parameter(torch.zeros(features, settings.rank))
        self.scale = nn.Parameter(torch.zeros(weight.shape[0])) if settings.magnitude else None

    def _rotated(self, side: str, matrix: Tensor) -> Tensor:
        # (I - Q)(I + Q)^-1 M = M - 2 X (I + Y^T X)^-1 Y^T M with Q = X Y^T.
        a, b = self.pairs[f"{side}_a"], self.strength * self.pairs[f"{side}_b"]
        X, Y = torch.cat([a, -b], 1), torch.cat([b, a], 1)
        return matrix - 2 * X @ torch.linalg.solve(torch.eye(X.shape[1]) + Y.T @ X, Y.T @ matrix)

    def forward(self, weight: Tensor) -> Tensor:
        weight = self._rotated("in", weight.mT).mT if "in_a" in self.pairs else weight
        weight = self._rotated("out", weight) if "out_a" in self.pairs else weight
        return weight if self.scale is None else weight * (1 + self.strength * self.scale)[:, None]


class Subspace(Candidate):
    """A rotation within the span of ``basis`` ``(in, width)``; all other directions are unchanged."""

    def __init__(self, weight: Tensor, place: int, settings: Settings, basis: Tensor | None) -> None:
        super().__init__(weight, place, settings, basis)
        assert basis is not None
        self.basis, self.rotation = basis, Rotation(basis.shape[1], basis.shape[1])

    def forward(self, weight: Tensor) -> Tensor:
        within = weight @ self.basis
        return weight + (within @ self.rotation.blocks()[0].mT - within) @ self.basis.T


class PlainBlocks(Candidate):
    """``W (I + A)`` with unconstrained blocks ``A``, without orthogonality."""

    def __init__(self, weight: Tensor, place: int, settings: Settings, basis: Tensor | None) -> None:
        super().__init__(weight, place, settings, basis)
        inputs = weight.shape[1]
        self.size = next(size for size in range(settings.block_size, 0, -1) if inputs % size == 0)
        self.blocks = nn.Parameter(torch.zeros(inputs // self.size, self.size, self.size))

    def forward(self, weight: Tensor) -> Tensor:
        parts = weight.view(weight.shape[0], -1, self.size)
        return weight + self.strength * torch.einsum("onb,nbc->onc", parts, self.blocks).reshape(weight.shape)


class SymmetricBlocks(PlainBlocks):
    """``W (I + A + A^T)``: to first order, the symmetric half of the changes, which a rotation does not have."""

    def forward(self, weight: Tensor) -> Tensor:
        parts = weight.view(weight.shape[0], -1, self.size)
        stretch = self.blocks + self.blocks.mT
        return weight + self.strength * torch.einsum("onb,nbc->onc", parts, stretch).reshape(weight.shape)


class LoRA(Candidate):
    """``W + s B A``; the scale is 2 for alpha = 2 r, and 2 sqrt(r) in rsLoRA."""

    def __init__(self, weight: Tensor, place: int, settings: Settings, basis: Tensor | None) -> None:
        super().__init__(weight, place, settings, basis)
        self.B = nn.Parameter(torch.zeros(weight.shape[0], settings.rank))
        start = torch.empty(settings.rank, weight.shape[1])
        nn.init.kaiming_uniform_(start, a=math.sqrt(5))
        self.A, self.scaling = nn.Parameter(start), settings.lora_scale

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.scaling * self.strength * (self.B @ self.A)


class DoRA(Candidate):
    """LoRA for the direction of each row, with a trained magnitude; the norm has no gradient, as in PEFT."""

    def __init__(self, weight: Tensor, place: int, settings: Settings, basis: Tensor | None) -> None:
        super().__init__(weight, place, settings, basis)
        self.lora, self.size = LoRA(weight, place, settings, basis), weight.norm(dim=1)
        self.gain = nn.Parameter(torch.ones(weight.shape[0]))

    def forward(self, weight: Tensor) -> Tensor:
        moved = self.lora(weight)
        return moved * (self.size * (1 + self.strength * (self.gain - 1)) / moved.norm(dim=1).detach())[:, None]


class PiSSA(Candidate):
    """LoRA that begins with the largest singular directions of the weight."""

    def __init__(self, weight: Tensor, place: int, settings: Settings, basis: Tensor | None) -> None:
        super().__init__(weight, place, settings, basis)
        U, S, V = torch.linalg.svd(weight, full_matrices=False)
        root = S[: settings.rank].sqrt()
        self.B, self.A = nn.Parameter(U[:, : settings.rank] * root), nn.Parameter(root[:, None] * V[: settings.rank])
        self.start = (self.B @ self.A).detach().clone()

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.strength * (self.B @ self.A - self.start)


class Full(Candidate):
    """Full finetuning of the weight."""

    def __init__(self, weight: Tensor, place: int, settings: Settings, basis: Tensor | None) -> None:
        super().__init__(weight, place, settings, basis)
        self.difference = nn.Parameter(torch.zeros_like(weight))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.strength * self.difference


KINDS: dict[str, Any] = {
    "blocks": Blocks, "butterfly": Butterfly, "lowrank": LowRank, "subspace": Subspace, "plain_blocks": PlainBlocks,
    "symmetric_blocks": SymmetricBlocks,
    "lora": LoRA, "dora": DoRA, "pissa": PiSSA, "full": Full,
}  # fmt: skip
