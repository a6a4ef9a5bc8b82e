"""A call without gradients that is like the last one, of a layer whose input is mapped by an operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.modules.module import _has_any_global_hook

from orthotune.kernels.autograd import looked_through_uncompiled
from orthotune.kernels.rotate import multiplied
from orthotune.layers.parametrization.family import FamilyRotation
from orthotune.rotation.operator import Operator, cast_once

if TYPE_CHECKING:
    from orthotune.layers.base import OFTLayer

_forward_of_linear = nn.Linear.forward
#: elements of an input whose rotation takes so little time that the overhead of Python matters
SHORT = 1 << 18


class RepeatedCall:
    """What a call like the last one may do at once, without a plan.

    Everything that a plan depends on is either compared here (the parameters, hooks, a forward on the instance) or ends
    this object (adapters, strengths, merges, the mode: :meth:`OFTLayer.changed`).
    """

    __slots__ = ("base", "dtype", "entry", "forward", "memo", "operator", "rotation")

    def __init__(self, layer: OFTLayer, rotation: FamilyRotation, operator: Operator, dtype: torch.dtype) -> None:
        self.base: nn.Module = layer.base_layer
        self.forward = self.base.__dict__.get("forward")
        self.rotation, self.memo, self.entry = rotation, rotation.memo, rotation.memo.entry
        self.operator, self.dtype = cast_once(operator, dtype), dtype

    def __call__(self, x: Tensor) -> Any:
        """The layer's output for ``x``, or None when a plan has to be made. Gradients are off."""
        base, weight = self.base, self.rotation._parameters.get("weight")
        if base._forward_hooks or base._forward_pre_hooks or base.__dict__.get("forward") is not self.forward:
            return None
        if weight is None or x.dtype != self.dtype or self.rotation.training or looked_through_uncompiled():
            return None
        if not self.memo.still(self.entry, weight, self.rotation._buffers.get("basis")):
            return None
        if not 0 < x.numel() < SHORT or not x.is_cpu or torch.is_autocast_enabled("cpu"):
            return None
        return call_base(base, self.forward, multiplied(x, self.operator))


def call_base(base: nn.Module, forward: Callable[..., Any] | None, x: Tensor) -> Any:
    """A base for an input that is mapped already; a plain linear layer without the way through its module.

    Args:
        base: the base layer.
        forward: what the instance has in the place of the class's forward, or None.
        x: its input.

    Example:
        >>> call_base(nn.Linear(2, 1, bias=False).requires_grad_(False), None, torch.zeros(1, 2))
        tensor([[0.]])
    """
    if type(base) is not nn.Linear or forward is not None or _has_any_global_hook():
        return base(x)
    if nn.Linear.forward is not _forward_of_linear:
        return base(x)
    own = base._parameters
    return linear(x, cast(Tensor, own["weight"]), own["bias"])


def remember(layer: OFTLayer, rotation: FamilyRotation, operator: Operator, x: Tensor) -> None:
    """Let a layer repeat its call at once while nothing has changed.

    Args:
        layer: its input alone is mapped, by one adapter.
        rotation: of the adapter.
        operator: what the rotation has given for this call.
        x: the input.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or rotation.training or rotation.memo.entry is None:
        return
    if not 0 < x.numel() < SHORT or not x.is_cpu:
        return
    if rotation.memo.peek("R") is operator and layer.opaque() is None and not layer.in_use.outputs_change:
        layer.__dict__["_again"] = RepeatedCall(layer, rotation, operator, x.dtype)
