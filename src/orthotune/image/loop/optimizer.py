"""The optimizer and its learning rate, which depends on the step only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from orthotune.errors import RecipeError
from orthotune.image.loop.options import LoopOptions
from orthotune.runs.learning_rates import by_factor

#: Prefix of the names of the parameters that have the rate ``hint_learning_rate``.
HINTS = "hint_encoder."
#: Devices on which torch has fused AdamW.
FUSED = ("cpu", "cuda", "mps", "xpu")


def make_optimizer(parameters: Mapping[str, nn.Parameter], options: LoopOptions) -> Optimizer:
    """AdamW, fused if torch supports this on the device; with 8-bit moments for ``adamw-8bit``.

    The entry ``factor`` of a parameter group multiplies the learning rate.

    Args:
        parameters: name -> parameter.
        options: of the loop.

    Raises:
        RecipeError: 8-bit moments without bitsandbytes.
    """
    factor = (options.hint_learning_rate or options.learning_rate) / options.learning_rate
    hints = [one for name, one in parameters.items() if name.startswith(HINTS)]
    others = {name: one for name, one in parameters.items() if not name.startswith(HINTS)}
    groups: list[dict[str, Any]] = [{"params": hints, "factor": factor}] if hints else []
    groups += [{"params": own, "factor": other} for other, own in by_factor(others, options.rate_factors).items()]
    if options.optimizer == "adamw-8bit":
        return _eight_bit(groups, options)
    fused = all(one.device.type in FUSED and one.is_floating_point() for one in parameters.values())
    return torch.optim.AdamW(groups, lr=options.learning_rate, weight_decay=options.weight_decay, fused=fused)


def rate(step: int, options: LoopOptions) -> float:
    """The learning rate of a step.

    It rises linearly during the warm-up and has its maximum in the last step of it. Then it is constant, or falls
    linearly or as half a cosine, to zero in the step after the last one.

    Args:
        step: of the optimizer, counted from 0.
        options: of the loop.

    Example:
        >>> options = LoopOptions(learning_rate=1.0, steps=4, warmup=2, schedule="linear")
        >>> [rate(step, options) for step in range(4)]
        [0.5, 1.0, 1.0, 0.5]
    """
    warmup = round(options.warmup * options.steps) if options.warmup < 1 else round(options.warmup)
    if step < warmup:
        return options.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, options.steps - warmup)
    shape = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return options.learning_rate * shape[options.schedule]


def set_rate(optimizer: Optimizer, value: float) -> None:
    """Set the learning rate.

    Args:
        optimizer: from :func:`make_optimizer`.
        value: the rate, which is multiplied by the factor of each group.
    """
    for group in optimizer.param_groups:
        group["lr"] = value * group["factor"]


def _eight_bit(groups: list[dict[str, Any]], options: LoopOptions) -> Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as fault:
        raise RecipeError(
            "optimizer=adamw-8bit",
            got="no bitsandbytes here",
            do="Install it with pip install 'orthotune[quant-bnb]', or leave optimizer=adamw",
        ) from fault
    optimizer: Optimizer = AdamW8bit(groups, lr=options.learning_rate, weight_decay=options.weight_decay)
    return optimizer
