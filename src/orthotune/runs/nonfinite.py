"""Where NaN and infinity come from: the layer whose output, or whose gradient, is the first not to be finite."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from orthotune.errors import TrainingError
from orthotune.runs.failed_save import kept

Kind = Literal["loss", "gradient"]


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
    if not found:
        return None
    # An adapter's parameters lie below its layer, by their role and the adapter's name.
    around = [name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    return max(
        (name for name in around if found[-1].startswith(f"{name}.")), key=len, default=found[-1].rpartition(".")[0]
    )


@torch.no_grad()
def first_bad_output(
    model: nn.Module, inputs: Mapping[str, Any], forward: Callable[..., Any] | None = None
) -> str | None:
    """The innermost module whose output is the first not to be finite in a forward of ``inputs``; None if all are.

    Random state and mode of the model are left as they were.

    Args:
        model: whose modules are looked at.
        inputs: by name.
        forward: calls the model, given ``inputs``; the model itself if None.
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
            (forward or model)(**inputs)
    except Exception:  # a model that cannot even run is as bad as one that gives NaN; what was seen until then counts
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return found[0].removesuffix(".base_layer") if found else None


def skipped_message(step: int, kind: Kind, layer: str | None, count: int, most: int, advice: str, folder: Path) -> str:
    """The message about a skipped step.

    Args:
        step: the step.
        kind: what of it is not finite.
        layer: where it appeared first, if known.
        count: such steps of the run until now, this one included.
        most: largest number of such steps that is tolerated.
        advice: what to train with instead, for the error.
        folder: the folder of the run's checkpoints.

    Raises:
        TrainingError: there were more than ``most``; names the layer and the checkpoint that is kept.

    Example:
        >>> skipped_message(3, "loss", "layers.0.mlp", 1, 10, "Train with a lower learning rate", Path("checkpoints"))
        "Skipped: the loss of step 3 is NaN or infinite, first in layer 'layers.0.mlp'. No parameter was changed; 1 of \
at most 10 skipped steps."
    """
    given = f"the {kind} of step {step} is NaN or infinite" + (f", first in layer '{layer}'" if layer else "")
    if count > most:
        raise TrainingError(
            given[0].upper() + given[1:],
            got=f"{count} such steps in this run, max_skipped is {most}",
            do=f"{advice}; {kept(folder)}",
        )
    return f"Skipped: {given}. No parameter was changed; {count} of at most {most} skipped steps."


def not_saved(step: int, parameter: str | None) -> str:
    """The error for a checkpoint that would hold NaN or infinity; ``parameter`` is None where another process has it.

    Example:
        >>> not_saved(6, "proj.oft_R")
        "Step 6: 'proj.oft_R' holds NaN or infinity, so no checkpoint is written; the last one is kept."
    """
    named = f"'{parameter}'" if parameter else "a parameter"
    return f"Step {step}: {named} holds NaN or infinity, so no checkpoint is written; the last one is kept."


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
            plain = local.float() if local.element_size() == 1 else local  # isfinite() is not implemented for float8
            by_kind.setdefault((plain.device, plain.dtype), []).append(plain)
    # The largest number of each tensor: it cannot overflow, and many small tensors are one call.
    largest = (torch.stack(list(torch._foreach_norm(group, float("inf")))) for group in by_kind.values())
    return all(bool(found.isfinite().all()) for found in largest)
