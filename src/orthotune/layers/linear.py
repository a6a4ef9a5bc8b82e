"""Linear layers: the input turns, or the output does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from orthotune.kernels.choose import weight_turns
from orthotune.kernels.rotate import rotate
from orthotune.layers.base import OFTLayer
from orthotune.layers.mixed_batch import MixedBatch, mixed_batch
from orthotune.layers.shared_input import SharedInput

#: numbers of an input that is turned in so little time that what Python does around it counts
SHORT = 1 << 18


class Linear(OFTLayer):
    """``nn.Linear``: ``y = (x R) W^T + b`` (``side="in"``) or ``y = (x W^T) M^T + b`` (``side="out"``).

    Shapes: ``x`` ``(..., in)`` of any rank, returns ``(..., out)``. The bias is never turned or scaled.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        #: by adapter: this layer and those that get its input too
        self.shared_inputs: dict[str, SharedInput] = {}
        super().__init__(*args, **kwargs)

    def update_layer(self, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        self.shared_inputs.pop(adapter_name, None)
        super().update_layer(adapter_name, *args, **kwargs)

    def delete_adapter(self, adapter_name: str) -> None:
        """Forget an adapter and what is kept for its input, which would hold on to its rotations."""
        super().delete_adapter(adapter_name)
        self.shared_inputs.pop(adapter_name, None)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "shared_inputs": {}}  # the neighbours of a copy are others

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if kwargs and (batch := mixed_batch(self, kwargs, x)) is not None:
            return self._mixed(batch, x, args, kwargs)
        if len(self.shared_inputs) == 1 and not args and x.numel() < SHORT:
            (shared,) = self.shared_inputs.values()
            if (turned := shared.standing(self, x)) is not None:
                return self.base_layer(turned)
        adapters, outputs_change = self.adapters_in_use(), False
        if adapters and self._turns_weight(x):
            return linear(x, self.turned(adapters, rounded=True)["weight"], self.get_base_layer().bias)
        for name in adapters:
            if self.oft_settings[name].spec.side == "in":
                x = self._rotated(x, name, len(adapters) == 1)
                outputs_change |= name in self.oft_magnitude
            else:
                outputs_change = True
        if not outputs_change:
            return self.base_layer(x, *args, **kwargs)
        y = self._without_bias(x)
        for name in adapters:
            if self.oft_settings[name].spec.side == "out":
                y = rotate(y, self.oft_R[name]().mT)
            scale = self.magnitude(name)
            y = y if scale is None else y * scale.to(y.dtype)
        bias = self.get_base_layer().bias
        return y if bias is None else y + bias.to(y.dtype)

    def _mixed(self, batch: MixedBatch, x: Tensor, args: Any, kwargs: Any) -> Tensor:
        here = [name for name in batch.rows if name in self.oft_R]
        x = batch.rotated(self, x, [name for name in here if self.oft_settings[name].spec.side == "in"])
        changed = [n for n in here if self.oft_settings[n].spec.side == "out" or n in self.oft_magnitude]
        if not changed:
            return self.base_layer(x, *args, **kwargs)
        if sum(len(batch.rows[name]) for name in changed) == len(x):
            return self._with_outputs(batch, x, changed)
        # A product with the bias added in it rounds elsewhere: rows whose outputs stay run as in the base.
        own, inside, outside = batch.parted(tuple(changed), x.device)
        y = torch.cat([self._with_outputs(own, x[inside], changed), self.base_layer(x[outside], *args, **kwargs)])
        return y[torch.cat([inside, outside]).argsort()]

    def _with_outputs(self, batch: MixedBatch, x: Tensor, adapters: list[str]) -> Tensor:
        y = self._without_bias(x)
        y = batch.rotated(self, y, [n for n in adapters if self.oft_settings[n].spec.side == "out"], transposed=True)
        y = batch.scaled(self, y, [name for name in adapters if name in self.oft_magnitude])
        bias = self.get_base_layer().bias
        return y if bias is None else y + bias.to(y.dtype)

    def _rotated(self, x: Tensor, name: str, alone: bool) -> Tensor:
        shared = self.shared_inputs.get(name) if alone else None
        turned = None if shared is None else shared.rotated(self, x)
        return rotate(x, self.oft_R[name]()) if turned is None else turned

    def _turns_weight(self, x: Tensor) -> bool:
        base = self.base_layer
        return (
            type(base) is nn.Linear
            and weight_turns(x.device.type, x.shape[:-1].numel(), base.out_features, torch.is_grad_enabled())
            and not self.training  # where blocks may be dropped
            and "forward" not in base.__dict__
            and not (base._forward_hooks or base._forward_pre_hooks or torch.is_autocast_enabled(x.device.type))
            and not torch.compiler.is_compiling()
        )

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
