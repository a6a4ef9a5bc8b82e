"""Where NaN and infinity come from: the layer whose output, or whose gradient, is the first not to be finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn


def bad_parameter(model: nn.Module) -> str | None:
    """Name of the first trained parameter that holds NaN or infinity, None if all are finite.

    Example:
        >>> bad_parameter(nn.Linear(2, 2)) is None
        True
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return next((name for name, parameter in trained if not _finite([parameter.detach()])), None)


def gradients_are_finite(model: nn.Module) -> bool:
    """Whether every gradient is; one answer from the device for all of them."""
    return _finite([parameter.grad for parameter in model.parameters() if parameter.grad is not None])


def first_bad_gradient(model: nn.Module) -> str | None:
    """The layer nearest to the loss with a gradient that is not finite: those before it inherit theirs from it."""
    found = [name for name, p in model.named_parameters() if p.grad is not None and not _finite([p.grad])]
    return found[-1].rpartition(".")[0] if found else None


@torch.no_grad()
def first_bad_output(model: nn.Module, inputs: Mapping[str, Any]) -> str | None:
    """The innermost module whose output is the first not to be finite in a forward of ``inputs``; None if all are.

    Random state and mode of the model are left as they were.
    """
    found: list[str] = []
    names = {module: name for name, module in model.named_modules()}

    def look(module: nn.Module, _: Any, output: Any) -> None:
        # Hooks of inner modules run before those around them: the first one is the innermost.
        if not found and not _finite(list(_floats(output))):
            found.append(names[module])

    hooks = [module.register_forward_hook(look) for module in names]
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices):
            model(**inputs)
    except Exception:  # a model that cannot even run is as bad as one that gives NaN; what was seen until then counts
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return found[0].removesuffix(".base_layer") if found else None


def _floats(output: Any) -> Any:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, Mapping):
        for value in output.values():
            yield from _floats(value)
    elif isinstance(output, (tuple, list)):
        for value in output:
            yield from _floats(value)


def _finite(tensors: list[Tensor]) -> bool:
    by_kind: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        local = cast(Any, tensor).to_local() if hasattr(tensor, "to_local") else tensor  # a shard's own part
        if local.numel() and local.device.type != "meta":
            plain = local.float() if local.element_size() == 1 else local  # torch asks numbers of one byte nothing
            by_kind.setdefault((plain.device, plain.dtype), []).append(plain)
    # The largest number of each tensor: it cannot overflow, and many small tensors are one call.
    largest = (torch.stack(list(torch._foreach_norm(group, float("inf")))) for group in by_kind.values())
    return all(bool(found.isfinite().all()) for found in largest)
