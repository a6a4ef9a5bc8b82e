"""Linear layers: the input turns, or the output does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from orthotune.kernels.rotate import rotate
from orthotune.layers.base import OFTLayer, refuse_mixed_batch


class Linear(OFTLayer):
    """``nn.Linear``: ``y = (x R) W^T + b`` (``side="in"``) or ``y = (x W^T) M^T + b`` (``side="out"``).

    Shapes: ``x`` ``(..., in)`` of any rank, returns ``(..., out)``. The bias is never turned or scaled.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if kwargs:
            refuse_mixed_batch(kwargs)
        adapters, outputs_change = self.adapters_in_use(), False
        for name in adapters:
            if self.oft_settings[name].side == "in":
                x = rotate(x, self.oft_R[name]())
                outputs_change |= name in self.oft_magnitude
            else:
                outputs_change = True
        if not outputs_change:
            return self.base_layer(x, *args, **kwargs)
        y = self._without_bias(x)
        for name in adapters:
            if self.oft_settings[name].side == "out":
                y = rotate(y, self.oft_R[name]().mT)
            scale = self.magnitude(name)
            y = y if scale is None else y * scale.to(y.dtype)
        bias = self.get_base_layer().bias
        return y if bias is None else y + bias.to(y.dtype)

    def _without_bias(self, x: Tensor) -> Tensor:
        base = self.base_layer
        if type(base).forward is nn.Linear.forward and "forward" not in base.__dict__:
            return linear(x, base.weight)
        # Only the module itself knows its forward (an offloading hook, a subclass); its bias is taken off again.
        y, bias = base(x), self.get_base_layer().bias
        return y if bias is None else y - bias.to(y.dtype)


class TransposedLinear(Linear):
    """transformers' ``Conv1D`` (GPT-2): the weight is stored ``(in, out)``."""

    beyond_peft = "Conv1D layers"

    def matrices(self) -> dict[str, Tensor]:
        return {"": self.get_base_layer().weight.mT}

    def assemble(self, matrices: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"weight": matrices[""].mT}

    def _without_bias(self, x: Tensor) -> Tensor:
        base = self.base_layer
        if type(base).forward is Conv1D.forward and "forward" not in base.__dict__:
            return torch.matmul(x, base.weight)
        return super()._without_bias(x)
