"""A quantized layer that is run with the right gradient, whatever its library can do.

Some libraries have no backward on some devices, lose it after an evaluation pass, or round the gradient to zero. While
a model is adapted, each of its quantized layers, adapted or not, runs its library's own forward without a graph, and
the gradient is that of a linear layer: ``dx = g W`` with the dequantized ``W``. Nothing is kept for it, not even ``x``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from orthotune.quantized.contract import Library


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, run: Callable[[Tensor], Tensor], weight: Callable[[], Tensor]
    ) -> Tensor:
        ctx.weight, ctx.dtypes = weight, (x.dtype, None if bias is None else bias.dtype)
        return run(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        dx = dbias = None
        if ctx.needs_input_grad[0]:
            dx = torch.matmul(g, ctx.weight().to(g.dtype)).to(ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            dbias = g.float().reshape(-1, g.shape[-1]).sum(0).to(ctx.dtypes[1])
        return dx, dbias, None, None


class WithGradient:
    """Stands in for ``module.forward`` until :func:`detach`; ``before`` is the instance's forward, if it had one."""

    def __init__(self, module: nn.Module, library: Library) -> None:
        self.module, self.library, self.before = module, library, module.__dict__.get("forward")

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output ``(..., out)`` for ``x`` ``(..., in)``."""
        module, library, graph = self.module, self.library, torch.is_grad_enabled()

        def run(x: Tensor) -> Tensor:
            if library.own_forward(module):
                y: Tensor = self.before(x, *args, **kwargs) if self.before else type(module).forward(module, x)
                # Some kernels run in inference mode, whose tensors no graph takes.
                return y.clone() if graph and y.is_inference() else y
            y = torch.matmul(x, library.dequantize(module).to(x.dtype).mT)
            bias = library.bias(module)
            return y if bias is None else y + bias.to(y.dtype)

        bias = library.bias(module)
        learns = torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
        if not learns or (library.own_forward(module) and library.own_backward(module)):
            return run(x)
        return _Straight.apply(x, bias, run, lambda: library.dequantize(module))


def attach(module: nn.Module, library: Library) -> None:
    """Prepare a quantized layer and give it its gradient; doing it twice is doing it once."""
    library.prepare(module)
    if not isinstance(module.__dict__.get("forward"), WithGradient):
        module.forward = WithGradient(module, library)


def detach(module: nn.Module) -> None:
    """Give a layer its library's forward back; without effect on other modules."""
    ours = module.__dict__.get("forward")
    if isinstance(ours, WithGradient):
        del module.forward
        if ours.before is not None:
            module.forward = ours.before
