"""Convolutions: the kernel is rotated, so that overlapping patches, strides and paddings stay exactly the base's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from orthotune.kernels.autograd import looked_through
from orthotune.kernels.rotate import rotate_channels
from orthotune.layers.base import OFTLayer
from orthotune.layers.mixed_batch import mixed_batch
from orthotune.layers.offloaded import hosted
from orthotune.layers.plan import INPUT, KERNEL, Plan
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

    @property
    def in_features(self) -> int:
        """The base's ``in_channels``."""
        return int(self.get_base_layer().in_channels)

    @property
    def out_features(self) -> int:
        """The base's ``out_channels``."""
        return int(self.get_base_layer().out_channels)

    def no_lora_form(self) -> str | None:
        base = self.get_base_layer()
        if base.groups == 1:
            return None
        return f"a {type(base).__name__} with groups={base.groups}, whose kernel is no product of two convolutions"

    def matrices(self) -> dict[str, Tensor]:
        return {"": self.get_base_layer().weight.flatten(1)}

    def assemble(self, matrices: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"weight": matrices[""].view(self.get_base_layer().weight.shape)}

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if (batch := mixed_batch(self, kwargs, x)) is not None:
            here = [name for name in batch.rows if name in self.slots]
            return batch.by_adapter(x, here, lambda names, rows: self._under(names, rows, args, kwargs))
        path = self.path(x)
        if path == "base":
            return self.base_layer(x, *args, **kwargs)
        if path == "call":
            return self.call((x, *args), kwargs)
        return self._plainly(list(self.in_use.adapters), x, args, kwargs)

    def _under(self, names: list[str], x: Tensor, args: Any, kwargs: Any) -> Any:
        """Rows of a mixed batch that run under one adapter, or none."""
        if not names:
            return self.base_layer(x, *args, **kwargs)
        frozen = any(self.frozen_map(name) is not None for name in names)
        if frozen or self.opaque() is not None:
            return self.call((x, *args), kwargs, tuple(names))
        return self._plainly(names, x, args, kwargs)

    def _plainly(self, names: list[str], x: Tensor, args: Any, kwargs: Any) -> Any:
        """With the channels of the input rotated if that is all, otherwise with the kernel rotated."""
        if self._rotates_channels(names):
            R = self.oft_R[names[0]]()
            return self.base_layer(rotate_channels(x, R, len(self.get_base_layer().kernel_size)), *args, **kwargs)
        if hosted(self.base_layer):
            return self.call((x, *args), kwargs, tuple(names))
        base = self.base_layer
        quick = not torch.is_grad_enabled() and not self.training and not looked_through()
        weight = self.rotated_matrices(names, rounded=quick)["weight"].to(base.weight.dtype)
        return base._conv_forward(x, weight, base.bias)

    def _rotates_channels(self, names: list[str]) -> bool:
        # The kernel is a single point, and nothing but the input changes. Padding is no matter: rotated zeros are
        # zeros, and what circular and reflecting paddings copy is rotated alike.
        base = self.get_base_layer()
        if set(base.kernel_size) != {1} or base.groups != 1 or len(names) != 1:
            return False
        return self.slots[names[0]].settings.spec.side == "in" and names[0] not in self.oft_magnitude

    def opaque(self) -> str | None:
        reason = super().opaque()
        if reason is None and type(self.base_layer)._conv_forward not in _OWN:
            reason = f"{type(self.base_layer).__name__} has a convolution of its own"
        return reason

    def own_path(self, x: Tensor | None) -> Plan:
        """The channels of the input are rotated where the kernel is a single point, otherwise the kernel."""
        if self._rotates_channels(list(self.in_use.adapters)):
            return INPUT
        return Plan("call", "the host of the module brings its weight") if hosted(self.base_layer) else KERNEL
