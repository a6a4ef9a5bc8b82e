"""When a fast kernel must give way to plain operations, and the second derivatives of fast kernels.

A kernel here is a custom ``autograd.Function``: quick, and opaque to whatever looks through an operation. Function
transforms (``torch.func``), forward-mode differentiation and traces get the same mathematics in plain operations of
torch. A gradient that is to be differentiated again is computed in plain operations inside the kernel's backward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad


def looked_through() -> bool:
    """Whether a function transform, forward-mode differentiation or a trace looks through every operation now.

    Example:
        >>> looked_through()
        False
        >>> torch.func.grad(lambda x: x * looked_through())(torch.tensor(1.0))
        tensor(1.)
    """
    if torch.compiler.is_compiling():  # compiled code is traced through custom functions by itself
        return False
    return looked_through_uncompiled()


def looked_through_uncompiled() -> bool:
    """:func:`looked_through` for callers that know that nothing is being compiled.

    Example:
        >>> looked_through_uncompiled()
        False
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0 or torch._C._is_tracing()


def wrapped(tensor: Tensor) -> bool:
    """Whether a transform has replaced ``tensor``, so that its memory cannot be looked at, or it carries a tangent.

    Example:
        >>> wrapped(torch.zeros(2))
        False
    """
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor) or torch._C._is_tracing():
        return True
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(tensor).tangent is not None


def gradients_again(
    plain: Callable[..., Sequence[Tensor]],
    inputs: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of ``plain(*inputs)`` that have a graph themselves, for a backward that is to be differentiated.

    Args:
        plain: the kernel's mathematics in plain operations.
        inputs: connected to the graph that they came from.
        grads: one for each output, None where there is none.
        needed: for which inputs a gradient is wanted.

    Example:
        >>> x = torch.tensor([3.0], requires_grad=True)
        >>> (g,) = gradients_again(lambda x: (x**2,), [x], [torch.ones(1)], [True])
        >>> g.item(), g.requires_grad
        (6.0, True)
    """
    with torch.enable_grad():
        # Aliases: an input that depends on another one must not hand its gradient on to it here.
        aliases = [x.view_as(x) for x in inputs]
        outputs = plain(*aliases)
        pairs = [(y, g) for y, g in zip(outputs, grads, strict=True) if g is not None and y.requires_grad]
        wanted = [x for x, need in zip(aliases, needed, strict=True) if need]
        if not pairs or not wanted:
            return tuple(None for _ in needed)
        found = iter(
            torch.autograd.grad(
                [y for y, _ in pairs], wanted, [g for _, g in pairs], create_graph=True, allow_unused=True
            )
        )
    return tuple(next(found) if need else None for need in needed)
