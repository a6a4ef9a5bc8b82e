"""The trainable parameter of a rotation and the rotation it stands for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from orthotune.kernels.from_parameters import RotationMap
from orthotune.layers.block_dropout import drop_blocks
from orthotune.rotation.blocks import BlockLayout


class Rotation(nn.Module):
    """Packed skew blocks ``weight`` ``(copies * rows, b (b - 1) / 2)`` of one adapter at one matrix.

    ``copies`` is the number of matrices turned alike in shape (the experts of a mixture), 1 otherwise. Outside training
    the rotation is computed once per parameter version; writes through ``parameter.data`` do not count as a version,
    but a training step, ``train()``/``eval()`` and ``to()`` start afresh.
    """

    def __init__(
        self,
        layout: BlockLayout,
        map: RotationMap,
        copies: int = 1,
        dropout: float = 0.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.layout, self.map, self.copies, self.dropout = layout, map, copies, dropout
        rows, elements = layout.shape
        self.weight = nn.Parameter(torch.zeros(copies * rows, elements, dtype=dtype or torch.float32))
        self._cached: tuple[tuple[Any, ...], Tensor] | None = None

    def forward(self, whole: bool = False) -> Tensor:
        """The blocks in float32 (float64 for float64 parameters), one row per stored block unless blocks are dropped.

        ``whole`` drops none, whatever the mode: a merge in the middle of training keeps every block.

        Shapes: ``(rows, b, b)``, or ``(copies, rows, b, b)`` when there is more than one copy.
        """
        R, dropping = self._rotation(), self.training and self.dropout > 0 and not whole
        if self.copies == 1 and not dropping:
            return R
        count, size = self.layout.block_count, self.layout.block_size
        if dropping:
            rows = R.view(self.copies, -1, size, size).expand(-1, count, -1, -1).reshape(-1, size, size)
            R = drop_blocks(rows, self.dropout, self.copies * count)
        return R if self.copies == 1 else R.view(self.copies, -1, size, size)

    def _rotation(self) -> Tensor:
        weight = self.weight
        if torch.is_grad_enabled() and weight.requires_grad:
            self._cached = None
            if self.training and self.map.eps is not None:
                with torch.no_grad():  # COFT: the parameter itself stays within its ball
                    # Through .data: projecting again changes no bit, so a module used twice in one forward must not
                    # count as modified between its first use and the backward.
                    weight.data.copy_(self._project(weight))
            return self._compute()
        if torch.compiler.is_compiling() or weight.is_inference():
            return self._compute()  # neither has a version to go by
        version = (weight._version, weight.data_ptr())
        if self._cached is None or self._cached[0] != version:
            # A cache filled in inference mode must still serve a later training step.
            with torch.inference_mode(False), torch.no_grad():
                self._cached = (version, self._compute())
        return self._cached[1]

    def _project(self, v: Tensor) -> Tensor:
        return self.map.within_ball(v.view(self.copies, -1, v.shape[-1])).view(v.shape)

    def _compute(self) -> Tensor:
        v = self.weight
        if self.copies == 1 or self.map.eps is None:
            return self.map(v)
        return self.map(v.view(self.copies, -1, v.shape[-1])).flatten(0, 1)

    def train(self, mode: bool = True) -> Rotation:
        self._cached = None
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Rotation:
        self._cached = None
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cached": None}

    def extra_repr(self) -> str:
        return f"blocks={self.layout.block_count}x{self.layout.block_size}, shared={self.layout.shared}"
