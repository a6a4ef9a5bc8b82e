"""Options of transformers' trainers, checked before a model is loaded: optimizers, schedules, trackers, kernels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from transformers import get_scheduler
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations
from transformers.training_args import OptimizerNames

from orthotune.errors import RecipeError, nearest

#: The optimizer that is not transformers': Muon for matrices, AdamW for the rest.
MUON = "muon"
#: Part of an optimizer's name -> the module that it needs, and the package to install. The first match counts.
LIBRARIES: tuple[tuple[str, str, str], ...] = (
    ("galore", "galore_torch", "galore-torch"),
    ("apollo", "apollo_torch", "apollo-torch"),
    ("lomo", "lomo_optim", "lomo-optim"),
    ("grokadamw", "grokadamw", "grokadamw"),
    ("schedule_free", "schedulefree", "schedulefree"),
    ("stable_adamw", "optimi", "torch-optimi"),
    ("anyprecision", "torchdistx", "torchdistx"),
    ("torch_4bit", "torchao", "torchao"),
    ("torch_8bit", "torchao", "torchao"),
    ("torch_xla", "torch_xla", "torch_xla"),
    ("npu", "torch_npu", "torch_npu"),
    ("bnb", "bitsandbytes", "bitsandbytes"),
    ("8bit", "bitsandbytes", "bitsandbytes"),
    ("paged", "bitsandbytes", "bitsandbytes"),
    ("lion", "bitsandbytes", "bitsandbytes"),
    ("ademamix", "bitsandbytes", "bitsandbytes"),
)
#: Optimizers that project the gradients of complete weight matrices.
PROJECTING = ("galore", "apollo")
#: Key of ``optim_options`` -> field of the trainer's arguments.
ADAM_FIELDS = {"beta1": "adam_beta1", "beta2": "adam_beta2", "epsilon": "adam_epsilon"}


def check_optimizer(name: str | None, method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The trainer's arguments for an optimizer.

    Args:
        name: of transformers' ``OptimizerNames``, or ``muon``; None for the trainer's default, AdamW.
        method: ``oft``, ``coft``, ``lora`` or ``full``.
        options: ``beta1``, ``beta2`` and ``epsilon`` of the Adam family.

    Returns:
        Fields of the arguments.

    Raises:
        RecipeError: no such optimizer, its library is not installed, or it does not train this method.

    Example:
        >>> check_optimizer("adafactor", "oft", {})
        {'optim': 'adafactor'}
    """
    known = [MUON, *(one.value for one in OptimizerNames)]
    if name is not None and name not in known:
        near = nearest(name, known, 1)
        do = f"Did you mean {near[0]!r}?" if near else None
        raise RecipeError(f"optim={name}", got="no such optimizer", needed=f"one of {', '.join(known)}", do=do)
    fields: dict[str, Any] = {} if name in (None, MUON) else {"optim": name}
    if name == MUON:
        _check_muon(method)
    for part, module, package in LIBRARIES:
        if name is not None and part in name:
            if not _installed(module):
                raise RecipeError(
                    f"optim={name}", got=f"no package {module} in this environment", do=f"Run pip install {package}"
                )
            break
    if name is not None and any(part in name for part in PROJECTING):
        if method != "full":
            raise RecipeError(
                f"optim={name}", got=f"method={method}, which trains no complete weight matrix",
                do="Choose method=full, or an optimizer of the Adam family",
            )  # fmt: skip
        fields["optim_target_modules"] = "all-linear"
    return fields | _adam(name, options)


def _check_muon(method: str) -> None:
    if not hasattr(torch.optim, "Muon"):
        raise RecipeError("optim=muon", got=f"torch {torch.__version__} without Muon", do="Install torch 2.9 or newer")
    if method in ("oft", "coft"):
        raise RecipeError(
            f"optim=muon with method={method}",
            got="parameters of rotations: each row is the upper triangle of a skew-symmetric block, no matrix whose "
            "singular values Muon could make equal",
            do="Leave optim out, or choose method=lora or full",
        )


def _adam(name: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    fields = {}
    for key, value in options.items():
        if key not in ADAM_FIELDS:
            near = nearest(key, ADAM_FIELDS, 1)
            do = f"Did you mean {near[0]!r}?" if near else None
            raise RecipeError(f"optim_options.{key}", got="no such option", needed=f"{', '.join(ADAM_FIELDS)}", do=do)
        if name is not None and not any(part in name for part in ("adam", "lion")):
            raise RecipeError(f"optim_options.{key} with optim={name}", needed="an optimizer of the Adam family")
        top = 1.0 if key != "epsilon" else float("inf")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < top:
            needed = "a number of at least 0" if key == "epsilon" else "a number of at least 0 and below 1"
            raise RecipeError(f"optim_options.{key}={value!r}", needed=needed)
        fields[ADAM_FIELDS[key]] = float(value)
    return fields


def check_schedule(name: str, options: Mapping[str, Any], steps: int = 100) -> None:
    """Refuse options that a schedule does not have, or lacks, by making one.

    Args:
        name: transformers' name of the schedule.
        options: its own, as ``min_lr_rate``.
        steps: of a run.

    Raises:
        RecipeError: what the schedule needs.

    Example:
        >>> check_schedule("cosine_with_min_lr", {"min_lr_rate": 0.1})
    """
    if name == "constant_with_warmup" and options:  # transformers would pass over them in silence
        raise RecipeError(f"schedule=constant with schedule_options={dict(options)}", needed="no options")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    try:
        get_scheduler(name, optimizer, 1, steps, dict(options))
    except (TypeError, ValueError) as fault:
        raise RecipeError(
            f"schedule={name} with schedule_options={dict(options)}", got=str(fault).strip().splitlines()[0],
            needed=SCHEDULE_NEEDS.get(name, "options that this schedule of transformers has"),
        ) from fault  # fmt: skip


#: What schedules cannot do without.
SCHEDULE_NEEDS = {
    "cosine_with_min_lr": "schedule_options.min_lr, a rate, or schedule_options.min_lr_rate, a share of learning_rate",
    "warmup_stable_decay": "schedule_options.num_decay_steps",
}


def check_trackers(names: Sequence[str]) -> list[str]:
    """``names``, after checking that each of them can be reported to.

    Raises:
        RecipeError: unknown, or its package is not installed.

    Example:
        >>> check_trackers([])
        []
    """
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            known = list(INTEGRATION_TO_CALLBACK)
            near = nearest(name, known, 1)
            do = f"Did you mean {near[0]!r}?" if near else None
            raise RecipeError(f"trackers={name}", got="no such tracker", needed=f"one of {', '.join(known)}", do=do)
        if name not in get_available_reporting_integrations():
            raise RecipeError(f"trackers={name}", got="not installed", do=f"Run pip install {name}, or leave it out")
    return list(names)


def check_liger(wanted: bool) -> None:
    """Refuse Liger kernels where they cannot be used.

    Raises:
        RecipeError: the package or an accelerator is missing.
    """
    if not wanted:
        return
    if not _installed("liger_kernel"):
        raise RecipeError(
            "liger=true", got="no package liger_kernel in this environment", do="Run pip install liger-kernel"
        )
    if not torch.accelerator.is_available():
        raise RecipeError("liger=true", got="no accelerator", needed="a GPU, for which these kernels are written")


def choose_attention(model: Any, name: str | None) -> None:
    """Let a model compute its attention by another implementation.

    Args:
        model: a transformers model.
        name: ``eager``, ``sdpa``, ``flash_attention_2`` or another one that transformers has; None changes nothing.

    Raises:
        RecipeError: unknown, not installed, or not for this model.
    """
    if name is None:
        return
    try:
        model.set_attn_implementation(name)
    except (ImportError, ValueError, AttributeError, OSError) as fault:
        raise RecipeError(
            f"attention={name}", got=str(fault).strip().splitlines()[0],
            needed="an implementation that is installed, as eager, sdpa, flash_attention_2 or flex_attention",
        ) from fault  # fmt: skip
    chosen = getattr(model.config, "_attn_implementation", name)
    if chosen != name:
        raise RecipeError(f"attention={name}", got=f"{type(model).__name__}, which went on with {chosen}")


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):
        return False
