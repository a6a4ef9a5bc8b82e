"""A quantized layer that computes what it will be after merging: the adapted weight is quantized in every call.

A merge rounds the adapted weight to the numbers that its library can store, so that a merged model computes something
else than what was trained. Here the forward stores the adapted weight in the library's own way and runs the library's
own layer, and the backward takes the rounding for the identity (the straight-through estimator).

Source: Bengio, Leonard and Courville, arXiv 1308.3432, section 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from orthotune.layers.base import CALLS
from orthotune.quantized.contract import Snapshot

if TYPE_CHECKING:
    from orthotune.layers.quantized_linear import QuantizedLinear


@contextmanager
def stored(layer: QuantizedLinear, weight: Tensor | Snapshot) -> Iterator[Snapshot]:
    """Another weight in the base until the end, quantized as a merge does it.

    Args:
        layer: its base is changed and restored.
        weight: ``(out, in)`` in float32, or what this gave for it before.

    Returns:
        The stored weight, by reference.
    """
    base, library = layer.get_base_layer(), layer.library
    before = library.snapshot(base)
    try:
        if isinstance(weight, Snapshot):
            library.restore(base, weight)
        else:
            library.requantize(base, weight.detach())
        yield library.snapshot(base)
    finally:
        library.restore(base, before)


class _ThroughQuantizer(torch.autograd.Function):
    """Keeps the input and the quantized weight, which is as small as the base's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, layer: QuantizedLinear) -> Tensor:
        with stored(layer, weight) as kept:
            y: Tensor = layer.base_layer(x)
        ctx.save_for_backward(x)
        ctx.layer, ctx.kept, ctx.dtype = layer, kept, weight.dtype
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (x,), layer = ctx.saved_tensors, ctx.layer
        dx = dW = None
        with torch.no_grad(), torch.autocast(g.device.type, enabled=False):
            if ctx.needs_input_grad[0]:
                with CALLS, stored(layer, ctx.kept):
                    weight = layer.library.dequantize(layer.get_base_layer())
                dx = torch.matmul(g, weight.to(g.dtype)).to(x.dtype)
            if ctx.needs_input_grad[1]:
                rows = x.reshape(-1, x.shape[-1]).to(g.dtype)
                dW = (g.reshape(-1, g.shape[-1]).mT @ rows).to(ctx.dtype)
        return dx, dW, None


def through_quantizer(layer: QuantizedLinear, x: Tensor) -> Tensor:
    """The layer's output with its active adapters merged into the quantized weight; nothing is changed.

    Without gradients it is, bit for bit, what the layer computes after :meth:`QuantizedLinear.merge`. With gradients
    the adapted weight is the same to the rounding of float32.

    Args:
        layer: with active adapters, none of them merged.
        x: its input ``(..., in)``.
    """
    names = list(layer.in_use.adapters)
    if not torch.is_grad_enabled():
        with stored(layer, layer.merged_parameters(names)["weight"]):
            y: Tensor = layer.base_layer(x)
        return y
    weight = layer.rotated_matrices(names)["weight"]
    found: Tensor = _ThroughQuantizer.apply(x, weight, layer)
    return found
