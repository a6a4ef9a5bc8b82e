"""Convolutions: the weight turns, so that overlapping patches, strides and paddings stay exactly the base's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from orthotune.kernels.rotate import rotate_channels
from orthotune.layers.base import OFTLayer
from orthotune.layers.mixed_batch import mixed_batch

_FORWARDS = (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)


class Conv(OFTLayer):
    """``nn.Conv1d/2d/3d`` with any kernel, stride, padding mode, dilation and groups.

    The weight ``(out, in / groups, *kernel)`` is a matrix ``(out, fan_in)`` with ``fan_in`` in the order (in, kernel)
    that PEFT's files use. ``side="in"`` turns ``fan_in``, the same way in every group; ``side="out"`` turns the output
    channels. A 1x1 kernel without groups turns its input, as a linear layer does: that needs no gradient of the weight.
    """

    @property
    def beyond_peft(self) -> str | None:  # type: ignore[override]
        """PEFT folds overlapping patches: its un-merged forward is another map unless the kernel is 1x1."""
        base = self.get_base_layer()
        return None if isinstance(base, nn.Conv2d) and set(base.kernel_size) == {1} else "convolutions"

    def matrices(self) -> dict[str, Tensor]:
        return {"": self.get_base_layer().weight.flatten(1)}

    def assemble(self, matrices: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"weight": matrices[""].view(self.get_base_layer().weight.shape)}

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if (batch := mixed_batch(self, kwargs, x)) is not None:
            here = [name for name in batch.rows if self.rotations(name)]
            result: Tensor = batch.by_adapter(x, here, lambda names, rows: self._under(names, rows, args, kwargs))
            return result
        return self._under(self.adapters_in_use(), x, args, kwargs)

    def _under(self, adapters: list[str], x: Tensor, args: Any, kwargs: Any) -> Tensor:
        if not adapters:
            return self.base_layer(x, *args, **kwargs)
        base = self.base_layer
        if len(adapters) == 1 and self._mixes_channels_only() and self._only_turns_input(adapters[0]):
            return base(rotate_channels(x, self.oft_R[adapters[0]]()), *args, **kwargs)
        weight = self.turned(adapters, rounded=not torch.is_grad_enabled() and not self.training)["weight"]
        weight = weight.to(base.weight.dtype)
        if type(base).forward in _FORWARDS and "forward" not in base.__dict__:
            return base._conv_forward(x, weight, base.bias)
        return functional_call(base, {"weight": weight}, (x, *args), kwargs)

    def _mixes_channels_only(self) -> bool:
        """Whether the kernel is a single point: then the input's channels can turn, as a linear layer's features do."""
        base = self.get_base_layer()
        return set(base.kernel_size) == {1} and base.groups == 1

    def _only_turns_input(self, name: str) -> bool:
        return self.oft_settings[name].spec.side == "in" and name not in self.oft_magnitude
