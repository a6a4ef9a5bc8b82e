"""Modules whose weights a host (accelerate, diffusers) brings for each call and puts away again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import stateless


def hosted(base: nn.Module) -> bool:
    """Whether accelerate or diffusers has put its offloading around the forward of ``base``, which moves weights only.

    Example:
        >>> hosted(nn.Linear(2, 2))
        False
    """
    return "_hf_hook" in base.__dict__ or "_diffusers_hook" in base.__dict__


def called(base: nn.Module, weights: dict[str, Tensor], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """``base`` called with other weights, also inside ``torch.jit.trace``, where ``functional_call`` is refused.

    Example:
        >>> called(nn.Linear(1, 1, bias=False), {"weight": torch.full((1, 1), 3.0)}, (torch.ones(1),), {})
        tensor([3.])
    """
    if torch.compiler.is_compiling() or not torch._C._is_tracing():
        return functional_call(base, weights, args, dict(kwargs))
    with stateless._reparametrize_module(base, weights, tie_weights=True):
        return base(*args, **kwargs)


@contextmanager
def at_hand(base: nn.Module) -> Iterator[None]:
    """The weights of a hosted module in memory, and its forward without the host's around it, until the end."""
    hooks = [(hook, module) for module in base.modules() for hook in _hooks(module)]
    taken = {
        module: module.__dict__.pop("forward")
        for module in base.modules()
        if hosted(module) and "forward" in module.__dict__
    }
    for hook, module in hooks:
        hook.pre_forward(module)
    try:
        yield
    finally:
        for hook, module in reversed(hooks):
            hook.post_forward(module, None)
        for module, forward in taken.items():
            module.forward = forward


def _hooks(module: nn.Module) -> list[Any]:
    """What brings the weights of ``module``, in the order in which its forward calls it."""
    outer, group = module.__dict__.get("_hf_hook"), module.__dict__.get("_diffusers_hook")
    found = [] if outer is None else [h for h in getattr(outer, "hooks", [outer]) if getattr(h, "offload", False)]
    return found + ([] if group is None else [group.hooks[name] for name in reversed(group._hook_order)])


def fetched(module: Any, name: str) -> Tensor:
    """A parameter of a module that is never called, so that its host never brings it: without a gradient then.

    Example:
        >>> fetched(nn.Linear(1, 1, bias=False).requires_grad_(False), "weight").shape
        torch.Size([1, 1])
    """
    parameter: Tensor = getattr(module, name)
    if parameter.device.type == "meta":
        for hook in _hooks(module):
            found: Tensor = hook.weights_map[name].to(hook.execution_device)
            return found
    return parameter


def stay_in_memory(layer: Any) -> None:
    """Bring for good what accelerate brings together with all submodules, and what is below a second wrapper.

    PEFT's merging puts away again the weights of ``layer.base_layer`` itself. It loses those of its submodules, as
    attention has one, and those of experts, which have a wrapper for each parameter.
    """
    base = layer.get_base_layer()
    for module in layer.modules():
        for hook in _hooks(module):
            if getattr(hook, "offload", False) and (hook.place_submodules or (module is base is not layer.base_layer)):
                if any(p.device.type == "meta" for p in module.parameters()):
                    hook.pre_forward(module)
                hook.offload = False
