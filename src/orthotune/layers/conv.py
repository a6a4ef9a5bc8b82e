"""Convolutions: the kernel is rotated, so that overlapping patches, strides and paddings stay exactly the base's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from orthotune.kernels.autograd import looked_through
from orthotune.kernels.rotate import rotate_channels
from orthotune.layers.base import OFTLayer
from orthotune.layers.mixed_batch import mixed_batch
from orthotune.layers.plan import INPUT, KERNEL, Plan, hosted, plan
from orthotune.layers.settings import LayerSettings

_OWN = (nn.Conv1d._conv_forward, nn.Conv2d._conv_forward, nn.Conv3d._conv_forward)


class Conv(OFTLayer):
    """``nn.Conv1d/2d/3d`` with any kernel, stride, padding mode, dilation and groups.

    The weight ``(out, in / groups, *kernel)`` is a matrix ``(out, fan_in)`` with ``fan_in`` in the order (in, kernel)
    that PEFT's files use. ``side="in"`` rotates ``fan_in``, the same way in every group; ``side="out"`` rotates the
    output channels. A 1x1 kernel without groups and padding rotates its input, as a linear layer does: that needs no
    gradient of the weight.
    """

    plain_forwards = (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)

    @property
    def beyond_peft(self) -> str | None:  # type: ignore[override]
        """PEFT folds overlapping patches: its un-merged forward is another map unless the kernel is 1x1."""
        base = self.get_base_layer()
        return None if isinstance(base, nn.Conv2d) and set(base.kernel_size) == {1} else "convolutions"

    @classmethod
    def check_frozen(cls, settings: LayerSettings) -> None:
        """Convolutions hold frozen maps."""

    def matrices(self) -> dict[str, Tensor]:
        return {"": self.get_base_layer().weight.flatten(1)}

    def assemble(self, matrices: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"weight": matrices[""].view(self.get_base_layer().weight.shape)}

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if (batch := mixed_batch(self, kwargs, x)) is not None:
            here = [name for name in batch.rows if name in self.slots]
            return batch.by_adapter(x, here, lambda names, rows: self._under(names, rows, args, kwargs))
        path = plan(self, x).path
        if path == "base":
            return self.base_layer(x, *args, **kwargs)
        if path == "input":
            (name,) = self.in_use.adapters
            R = self.oft_R[name]()
            return self.base_layer(rotate_channels(x, R, len(self.get_base_layer().kernel_size)), *args, **kwargs)
        if path == "weight":
            return self._with_kernel(x, list(self.in_use.adapters))
        return self.call((x, *args), kwargs)

    def _under(self, names: list[str], x: Tensor, args: Any, kwargs: Any) -> Any:
        """Rows of a mixed batch that run under one adapter, or none."""
        if not names:
            return self.base_layer(x, *args, **kwargs)
        if self.opaque() is None and not hosted(self.base_layer):
            return self._with_kernel(x, names)
        return self.call((x, *args), kwargs, tuple(names))

    def opaque(self) -> str | None:
        reason = super().opaque()
        if reason is None and type(self.base_layer)._conv_forward not in _OWN:
            reason = f"{type(self.base_layer).__name__} has a convolution of its own"
        return reason

    def own_path(self, x: Tensor | None) -> Plan:
        """The channels of the input are rotated where the kernel is a single point, otherwise the kernel."""
        base, use = self.get_base_layer(), self.in_use
        # Rotated zeros are zeros, and what circular and reflecting paddings copy is rotated alike.
        if set(base.kernel_size) == {1} and base.groups == 1 and len(use.adapters) == 1 and not use.outputs_change:
            return INPUT
        return Plan("call", "the host of the module brings its weight") if hosted(self.base_layer) else KERNEL

    def _with_kernel(self, x: Tensor, adapters: list[str]) -> Tensor:
        base = self.base_layer
        quick = not torch.is_grad_enabled() and not self.training and not looked_through()
        weight = self.turned(adapters, rounded=quick)["weight"].to(base.weight.dtype)
        y: Tensor = base._conv_forward(x, weight, base.bias)
        return y
