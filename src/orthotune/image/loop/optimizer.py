"""The optimizer and its learning rate, which depends on the step only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from transformers.optimization import Adafactor

from orthotune.errors import RecipeError
from orthotune.image.loop.options import LoopOptions

#: Prefix of the names of the parameters that have the rate ``hint_learning_rate``.
HINTS = "hint_encoder."
#: Prefix of the names of the parameters that have the rate ``text_encoder_learning_rate``.
TEXT_ENCODERS = "text_encoders."
#: Devices on which torch has fused AdamW.
FUSED = ("cpu", "cuda", "mps", "xpu")


#: Names that are not of torch or transformers: the package, its class, and how to install it.
PACKAGES = {
    "adamw-8bit": ("bitsandbytes.optim", "AdamW8bit", "'orthotune[quant-bnb]'"),
    "prodigy": ("prodigyopt", "Prodigy", "prodigyopt"),
    "schedule-free": ("schedulefree", "AdamWScheduleFree", "schedulefree"),
}
#: The optimizer that estimates the learning rate itself; the one of a run multiplies the estimate.
ESTIMATING = "prodigy"


def make_optimizer(parameters: Mapping[str, nn.Parameter], options: LoopOptions) -> Optimizer:
    """The optimizer of a run: AdamW, fused if torch supports this on the device, unless the options name another.

    ``adamw-8bit`` has 8-bit moments, ``adafactor`` (Shazeer and Stern 2018, arXiv 1804.04235) factored second moments
    and no first ones, ``prodigy`` (Mishchenko and Defazio 2023, arXiv 2306.06101) estimates the learning rate,
    ``schedule-free`` (Defazio et al. 2024, arXiv 2405.15682) averages parameters instead of lowering the rate. The
    entry ``factor`` of a parameter group multiplies the learning rate.

    Args:
        parameters: name -> parameter.
        options: of the loop.

    Raises:
        RecipeError: the package of the optimizer is not installed, it does not have an option, it has one rate for all
            parameters and the options have several, or a rate is of no parameter.
    """
    groups = _groups(parameters, options)
    if options.optimizer == ESTIMATING:
        groups = one_rate(groups)
    common: dict[str, Any] = {"lr": options.learning_rate, "weight_decay": options.weight_decay}
    kind: Any = torch.optim.AdamW
    if options.optimizer == "adamw":
        common["fused"] = all(one.device.type in FUSED and one.is_floating_point() for one in parameters.values())
    elif options.optimizer == "adafactor":
        kind = Adafactor
        common |= {"scale_parameter": False, "relative_step": False, "warmup_init": False}
    else:
        kind = _class_of(options.optimizer)
    try:
        optimizer: Optimizer = kind(groups, **common | dict(options.optimizer_options))
    except (TypeError, ValueError) as fault:
        raise RecipeError(
            f"optimizer={options.optimizer} with optimizer_options={dict(options.optimizer_options)}",
            got=str(fault).strip().splitlines()[0], needed=f"arguments of {kind.__name__}",
        ) from fault  # fmt: skip
    return optimizer


def one_rate(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The groups of an optimizer that estimates the rate: a factor that all parameters share has no meaning there.

    Args:
        groups: of parameters, each with its ``factor``.

    Raises:
        RecipeError: the factors differ.

    Example:
        >>> one_rate([{"params": [], "factor": 1.5}])
        [{'params': [], 'factor': 1.0}]
    """
    if len({group["factor"] for group in groups}) > 1:
        others = "magnitude_rate, layer_rates and text_encoder_learning_rate"
        raise RecipeError(
            f"optimizer={ESTIMATING}", got="learning rates that differ between parameters",
            needed="one rate for all, as it estimates one",
            do=f"Pass block_rate=0 and leave out {others}, or choose adamw",
        )  # fmt: skip
    return [group | {"factor": 1.0} for group in groups]


def check_optimizer(name: str) -> None:
    """Refuse an optimizer whose package is not installed, before anything is loaded.

    Args:
        name: of the optimizer.

    Raises:
        RecipeError: names the package.

    Example:
        >>> check_optimizer("adamw")
    """
    if name in PACKAGES:
        _class_of(name)


def set_training(optimizer: Any, training: bool) -> None:
    """Put the parameters of an optimizer that averages them into the state for training, or into the average.

    Args:
        optimizer: any; only schedule-free ones have the two states.
        training: False for the average, with which a model generates and is saved.
    """
    switch = getattr(optimizer, "train" if training else "eval", None)
    if switch is not None:
        switch()


def _class_of(name: str) -> Any:
    module, kind, package = PACKAGES[name]
    try:
        return getattr(import_module(module), kind)
    except ImportError as fault:
        raise RecipeError(
            f"optimizer={name}", got=f"no {module.partition('.')[0]} here",
            do=f"Install it with pip install {package}, or leave optimizer=adamw",
        ) from fault  # fmt: skip


def _check_rates(parameters: Mapping[str, nn.Parameter], options: LoopOptions) -> None:
    """Refuse rates of parameters that are not there, as after a typing error."""
    names = [name for name in parameters if not name.startswith(HINTS)]
    for part in options.layer_rates:
        if not any(part in name for name in names):
            raise RecipeError(
                f"layer_rates.{part}", got="no trained parameter whose name contains it",
                needed=f"a part of a name, as of {', '.join(names[:2])}",
            )  # fmt: skip
    if options.text_encoder_learning_rate is not None and not any(name.startswith(TEXT_ENCODERS) for name in names):
        raise RecipeError(
            f"text_encoder_learning_rate={options.text_encoder_learning_rate:g}", got="no text encoder that is trained",
            do="Leave it out",
        )  # fmt: skip


def _groups(parameters: Mapping[str, nn.Parameter], options: LoopOptions) -> list[dict[str, Any]]:
    _check_rates(parameters, options)
    hint_factor = (options.hint_learning_rate or options.learning_rate) / options.learning_rate
    hints = [one for name, one in parameters.items() if name.startswith(HINTS)]
    groups: list[dict[str, Any]] = [{"params": hints, "factor": hint_factor}] if hints else []
    found: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        if not name.startswith(HINTS):
            found.setdefault(_factor(name, parameter, options), []).append(parameter)
    # As in orthotune.runs.learning_rates: the group without a factor comes last.
    ordered = sorted(found.items(), key=lambda entry: entry[0] == 1)
    return groups + [{"params": own, "factor": factor} for factor, own in ordered]


def _factor(name: str, parameter: nn.Parameter, options: LoopOptions) -> float:
    factor = options.rate_factors.of(name, parameter)
    if name.startswith(TEXT_ENCODERS) and options.text_encoder_learning_rate is not None:
        factor *= options.text_encoder_learning_rate / options.learning_rate
    return factor * next((own for part, own in options.layer_rates.items() if part in name), 1.0)


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
