"""A learning rate of their own for the magnitudes that are trained beside rotations."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.optim import Optimizer

#: The part of a parameter's name by which PEFT and this package know a magnitude.
MAGNITUDE = "oft_magnitude"


def is_magnitude(name: str) -> bool:
    """Whether ``name`` is that of a magnitude's parameter.

    Example:
        >>> is_magnitude("model.layers.0.mlp.up_proj.oft_magnitude.default.weight")
        True
    """
    return MAGNITUDE in name.split(".")


def give_magnitudes_a_rate(optimizer: Optimizer, model: nn.Module, factor: float) -> Optimizer:
    """Let the magnitudes of ``model`` learn at ``factor`` times the rate of their group in ``optimizer``, in place.

    Call it before a schedule is made, which keeps the ratio. Adam moves every number by about the learning rate a
    step; a magnitude scales an entire neuron, while a parameter of a rotation is one of many that rotate it. (LoRA+,
    arXiv 2402.12354, makes the same observation about LoRA's two matrices.)

    Args:
        optimizer: of the parameters of ``model``, any that has ``param_groups``.
        model: with an OFT adapter whose config has ``magnitude=True``.
        factor: above 0; 1 changes nothing.

    Returns:
        ``optimizer``.

    Example:
        >>> import torch
        >>> from orthotune import OFTConfig, get_peft_model
        >>> model = get_peft_model(nn.Sequential(nn.Linear(4, 4)), OFTConfig(r=2, magnitude=True, target_modules=["0"]))
        >>> optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.5)
        >>> [group["lr"] for group in give_magnitudes_a_rate(optimizer, model, 4.0).param_groups]
        [0.5, 2.0]
    """
    if factor == 1:
        return optimizer
    fast = {id(parameter) for name, parameter in model.named_parameters() if is_magnitude(name)}
    new: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        moved = [one for one in group["params"] if id(one) in fast]
        if not moved:
            continue
        own = {key: value for key, value in group.items() if key != "params"}
        new.append({**own, "params": moved, "lr": own["lr"] * factor})
        group["params"] = [one for one in group["params"] if id(one) not in fast]
    for group in new:
        optimizer.add_param_group(group)
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    return optimizer
