"""Linear layers: the input is rotated, or the output is."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from orthotune.kernels.autograd import looked_through
from orthotune.kernels.choose import weight_is_rotated
from orthotune.kernels.rotate import rotate
from orthotune.layers.base import OFTLayer
from orthotune.layers.mixed_batch import MixedBatch, mixed_batch
from orthotune.layers.offloaded import at_hand, hosted
from orthotune.layers.parametrization.family import FamilyRotation
from orthotune.layers.parametrization.rotation import Rotation
from orthotune.layers.plan import INPUT, ROWS, SIDES, Plan
from orthotune.layers.repeated_call import remember
from orthotune.layers.settings import LayerSettings


class Linear(OFTLayer):
    """``nn.Linear``: ``y = (x R) W^T + b`` (``side="in"``) or ``y = (x W^T) M^T + b`` (``side="out"``).

    Shapes: ``x`` ``(..., in)`` of any rank, returns ``(..., out)``. The bias is never rotated or scaled.
    """

    plain_forwards = (nn.Linear.forward,)
    shares_input: ClassVar[bool] = True

    @classmethod
    def check_frozen(cls, settings: LayerSettings) -> None:
        """Plain linear layers hold frozen maps."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling() and not torch.is_grad_enabled():
            again = self.__dict__.get("_again")
            if again is not None and not args and not kwargs and (y := again(x)) is not None:
                return y
        if kwargs and (batch := mixed_batch(self, kwargs, x)) is not None:
            return self._mixed(batch, x, args, kwargs)
        path = self.path(x)
        if path == "input":
            return self.base_layer(self._rotated_in(x), *args, **kwargs)
        if path == "base":
            return self.base_layer(x, *args, **kwargs)
        if path == "sides":
            if hosted(self.base_layer):
                with at_hand(self.base_layer):
                    return self._with_bias(self._rotated_out(self._without_bias(self._rotated_in(x))))
            return self._with_bias(self._rotated_out(self._without_bias(self._rotated_in(x))))
        if path == "weight":
            weight = self.rotated_matrices(list(self.in_use.adapters), rounded=True)["weight"]
            return linear(x, weight, self.get_base_layer().bias)
        return self.call((x, *args), kwargs)

    def own_path(self, x: Tensor | None) -> Plan:
        """Inputs are rotated; the weight is, where there are many rows and no gradient."""
        if x is not None and not torch.is_grad_enabled() and x.dim() > 1 and self._rows_rotate_slower(x):
            return ROWS
        return SIDES if self.in_use.outputs_change else INPUT

    def _rows_rotate_slower(self, x: Tensor) -> bool:
        base = self.base_layer
        return (
            not torch.compiler.is_compiling()
            and type(base) is nn.Linear
            and weight_is_rotated(x.device.type, x.numel() // base.in_features, base.out_features, gradients=False)
            and not self.training  # where blocks may be dropped
            and "forward" not in base.__dict__
            and not torch.is_autocast_enabled(x.device.type)
            and not looked_through()
        )

    def _rotated_in(self, x: Tensor) -> Tensor:
        names = self.in_use.adapters
        if len(names) == 1:
            slot = self.slots[names[0]]
            if slot.settings.spec.side == "out":
                return x
            rotated = None if slot.shared is None else slot.shared.rotated(self, x)
            if rotated is not None:
                return rotated
            rotation: Any = self.oft_R[names[0]]
            if isinstance(rotation, Rotation) and (rotated := rotation.rotated(x)) is not None:
                return rotated
            made = rotation()
            if isinstance(rotation, FamilyRotation) and slot.shared is None:
                remember(self, rotation, made, x)
            return rotate(x, made)
        for name in names:
            if self.slots[name].settings.spec.side == "in":
                x = rotate(x, self.oft_R[name]())
        return x

    def _rotated_out(self, y: Tensor) -> Tensor:
        for name in self.in_use.adapters:
            if self.slots[name].settings.spec.side == "out":
                y = rotate(y, self.oft_R[name]().mT)
            scale = self.magnitude(name)
            y = y if scale is None else y * scale.to(y.dtype)
        return y

    def _without_bias(self, x: Tensor) -> Tensor:
        base = self.base_layer
        if type(base).forward is nn.Linear.forward and "forward" not in base.__dict__:
            return linear(x, base.weight)
        # Only the host of the module knows where its weight is; its bias is taken off again.
        y, bias = base(x), self.get_base_layer().bias
        return y if bias is None else y - bias.to(y.dtype)

    def _with_bias(self, y: Tensor) -> Tensor:
        bias = self.get_base_layer().bias
        return y if bias is None else y + bias.to(y.dtype)

    # Rows of one batch under several adapters.

    def _mixed(self, batch: MixedBatch, x: Tensor, args: Any, kwargs: Any) -> Any:
        here = [name for name in batch.rows if name in self.slots]
        if self.opaque() is not None or any(self.slots[name].settings.frozen is not None for name in here):
            return batch.by_adapter(x, here, lambda names, rows: self._under(names, rows, args, kwargs))
        x = batch.rotated(self, x, [name for name in here if self.slots[name].settings.spec.side == "in"])
        changed = [n for n in here if self.slots[n].settings.spec.side == "out" or n in self.oft_magnitude]
        if not changed:
            return self.base_layer(x, *args, **kwargs)
        if sum(len(batch.rows[name]) for name in changed) == len(x):
            return self._with_outputs(batch, x, changed)
        # A product with the bias added in it rounds elsewhere: rows whose outputs stay run as in the base.
        own, inside, outside = batch.parted(tuple(changed), x.device)
        y = torch.cat([self._with_outputs(own, x[inside], changed), self.base_layer(x[outside], *args, **kwargs)])
        return y[torch.cat([inside, outside]).argsort()]

    def _under(self, names: list[str], x: Tensor, args: Any, kwargs: Any) -> Any:
        """Rows of a mixed batch that run under one adapter, or none."""
        if not names:
            return self.base_layer(x, *args, **kwargs)
        if self.opaque() is None and self.slots[names[0]].settings.frozen is None:
            return self._mixed(MixedBatch(names * len(x)), x, args, kwargs)
        return self.call((x, *args), kwargs, tuple(names))

    def _with_outputs(self, batch: MixedBatch, x: Tensor, adapters: list[str]) -> Tensor:
        outward = [n for n in adapters if self.slots[n].settings.spec.side == "out"]
        y = batch.rotated(self, self._without_bias(x), outward, transposed=True)
        return self._with_bias(batch.scaled(self, y, [name for name in adapters if name in self.oft_magnitude]))


class TransposedLinear(Linear):
    """transformers' ``Conv1D`` (GPT-2): the weight is stored ``(in, out)``."""

    beyond_peft = "Conv1D layers"
    plain_forwards = (Conv1D.forward,)

    def matrices(self) -> dict[str, Tensor]:
        return {"": self.get_base_layer().weight.mT}

    def assemble(self, matrices: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"weight": matrices[""].mT}

    def natural(self, weight: Tensor) -> Tensor:
        return weight.mT

    def _without_bias(self, x: Tensor) -> Tensor:
        base = self.base_layer
        if type(base).forward is Conv1D.forward and "forward" not in base.__dict__:
            return torch.matmul(x, base.weight)
        return super()._without_bias(x)
