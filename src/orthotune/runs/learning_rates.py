"""Learning rates of their own for magnitudes, and for rotations by the size of their blocks.

Adam moves every parameter by about the learning rate a step. A magnitude scales an entire neuron, while a parameter of
a rotation is one of many that rotate it; and the more of these a block has, the farther one rate rotates it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from orthotune.rotation.packing import block_size_of

#: The parts of a parameter's name by which PEFT and this package know a magnitude and a rotation.
MAGNITUDE, ROTATIONS = "oft_magnitude", ("oft_R", "oft_embedding_R")
#: The block size at which a rotation learns at the learning rate itself.
REFERENCE = 32


def is_magnitude(name: str) -> bool:
    """Whether ``name`` is that of a magnitude's parameter.

    Example:
        >>> is_magnitude("model.layers.0.mlp.up_proj.oft_magnitude.default.weight")
        True
    """
    return MAGNITUDE in name.split(".")


@dataclass(frozen=True)
class RateFactors:
    """By how much the learning rates of single parameters differ from that of the run.

    Args:
        magnitude: magnitudes learn at this many times the rate.
        block_exponent: ``p``; rotations with blocks of size ``b`` learn at ``(32 / b) ** p`` times the rate.

    Example:
        >>> import torch
        >>> blocks_of_128 = nn.Parameter(torch.zeros(2, 128 * 127 // 2))
        >>> RateFactors(block_exponent=0.5).of("layer.oft_R.default.weight", blocks_of_128)
        0.5
    """

    magnitude: float = 1.0
    block_exponent: float = 0.0

    def of(self, name: str, parameter: nn.Parameter) -> float:
        """The factor of a parameter.

        Args:
            name: of the parameter in the model.
            parameter: packed blocks ``(rows, b (b - 1) / 2)`` if it is that of a rotation.
        """
        if is_magnitude(name):
            return self.magnitude
        if self.block_exponent and any(part in ROTATIONS for part in name.split(".")):
            return float((REFERENCE / _block_size(parameter)) ** self.block_exponent)
        return 1.0

    def note(self, model: nn.Module, rate: float) -> str:
        """What learns at another rate than that of the run, in one sentence; empty where all learn at the same.

        Args:
            model: with its trained parameters.
            rate: the learning rate of the run.

        Example:
            >>> import torch
            >>> model = nn.ModuleDict({"oft_R": nn.ParameterDict({"default": nn.Parameter(torch.zeros(1, 28))})})
            >>> RateFactors(block_exponent=0.5).note(model, 0.004)
            'Blocks of 8 learn at 0.008, 2 times learning_rate (block_rate=0.5).'
        """
        blocks: set[tuple[int, float]] = set()
        notes: list[str] = []
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad or (factor := self.of(name, parameter)) == 1:
                continue
            if not is_magnitude(name):
                blocks.add((_block_size(parameter), factor))
            elif not notes:
                notes.append(f"magnitudes learn at {_times(factor, rate)} (magnitude_rate={factor:g})")
        if blocks:
            own = " and ".join(f"blocks of {size} learn at {_times(factor, rate)}" for size, factor in sorted(blocks))
            notes.insert(0, f"{own} (block_rate={self.block_exponent:g})")
        text = ", ".join(notes)
        return f"{text[:1].upper()}{text[1:]}." if text else ""


def _times(factor: float, rate: float) -> str:
    return f"{factor * rate:.3g}, {factor:.3g} times learning_rate"


def _block_size(parameter: nn.Parameter) -> int:
    shape = getattr(parameter, "ds_shape", parameter.shape)  # DeepSpeed's parts of a parameter are empty
    return block_size_of(shape[-1])


#: Every parameter learns at the learning rate itself.
EQUAL = RateFactors()


def by_factor(parameters: Mapping[str, nn.Parameter], factors: RateFactors) -> dict[float, list[nn.Parameter]]:
    """Parameters by their factor, in their order.

    Args:
        parameters: by name.
        factors: of the run.

    Returns:
        factor -> its parameters; 1 comes last if any has it.
    """
    found: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        found.setdefault(factors.of(name, parameter), []).append(parameter)
    # The order of the groups is that of the states in a checkpoint.
    return dict(sorted(found.items(), key=lambda entry: entry[0] == 1))


def give_rates(optimizer: Optimizer, model: nn.Module, factors: RateFactors) -> Optimizer:
    """Let parameters of ``model`` learn at multiples of the rate of their group in ``optimizer``, in place.

    Call it before a schedule is made, which keeps the ratios. (LoRA+, arXiv 2402.12354, makes the same observation
    about LoRA's two matrices.)

    Args:
        optimizer: of the parameters of ``model``, any that has ``param_groups``.
        model: with an OFT adapter.
        factors: of its parameters; where all are 1, nothing changes.

    Returns:
        ``optimizer``.

    Example:
        >>> import torch
        >>> from orthotune import OFTConfig, get_peft_model
        >>> model = get_peft_model(nn.Sequential(nn.Linear(4, 4)), OFTConfig(r=2, magnitude=True, target_modules=["0"]))
        >>> optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.5)
        >>> [group["lr"] for group in give_rates(optimizer, model, RateFactors(magnitude=4.0)).param_groups]
        [0.5, 2.0]
    """
    factor_of = {id(parameter): factors.of(name, parameter) for name, parameter in model.named_parameters()}
    new: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        own = {key: value for key, value in group.items() if key != "params"}
        parameters = group["params"]
        group["params"] = [one for one in parameters if factor_of.get(id(one), 1.0) == 1]
        others = dict.fromkeys(factor_of.get(id(one), 1.0) for one in parameters)
        for factor in (factor for factor in others if factor != 1):
            moved = [one for one in parameters if factor_of.get(id(one), 1.0) == factor]
            new.append({**own, "params": moved, "lr": own["lr"] * factor})
    for group in new:
        optimizer.add_param_group(group)
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
    return optimizer
