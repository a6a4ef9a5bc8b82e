"""What is trained: the PEFT config of each method, with LoRA's rank chosen to match OFT's parameters."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from peft import LoraConfig, PeftConfig
from torch import nn

from orthotune import OFTConfig, get_peft_model
from orthotune.errors import RecipeError, nearest
from orthotune.quantized.registry import library_of
from orthotune.tuner.targets import HEADS, unmatched_targets

# Starts of LoRA after which PEFT's base is a residual, no longer the model that was loaded.
REPLACES_BASE = ("pissa", "olora", "loftq", "corda")


def rotation_config(
    targets: str | list[str],
    *,
    block_size: int | None = None,
    r: int | None = None,
    coft: bool = False,
    eps: float | None = None,
    options: dict[str, Any] | None = None,
    task: str | None = "CAUSAL_LM",
) -> PeftConfig:
    """The config of an OFT or COFT adapter.

    Args:
        targets: names of the adapted layers, or one of PEFT's words for them.
        block_size: side of a block.
        r: blocks per layer, instead of ``block_size``.
        coft: constrained OFT.
        eps: radius of COFT.
        options: further fields of OFTConfig.
        task: PEFT's task type, which decides what is trained in full beside the adapter.

    Raises:
        RecipeError: an option that OFTConfig does not have.
    """
    _known("rotation", options, OFTConfig)
    # A size is only passed if it was given: OFTConfig adapts its default to each layer, but not a given size.
    given = {"r": r, "oft_block_size": block_size, "eps": eps, **(options or {})}
    given = {name: value for name, value in given.items() if value is not None}
    return OFTConfig(target_modules=targets, task_type=task, coft=coft, **given)


def check_targets(targets: str | list[str], model: nn.Module, refuse: bool = True) -> None:
    """Refuse names of target modules that the model does not have; PEFT's LoRA passes over them in silence.

    Args:
        targets: names of the adapted layers, or one of PEFT's words or expressions, which are not checked.
        model: to be adapted.
        refuse: False accepts the names that some module has; an adapter without any target is refused elsewhere.

    Raises:
        RecipeError: names each such target with the nearest names of the model.
    """
    missing = unmatched_targets(targets, model) if refuse else {}
    if missing:
        near = list(dict.fromkeys(name for names in missing.values() for name in names))
        raise RecipeError(
            f"target_modules={list(targets)}",
            got=f"no module of {type(model).__name__} is called {', '.join(missing)}",
            needed=f"names of modules of the model, such as {', '.join(near)}" if near else "names of its modules",
            do="Correct target_modules, or pass unmatched_targets=skip to train the others alone",
        )  # fmt: skip


def lora_config(
    targets: str | list[str],
    rank: int,
    alpha: float | None = None,
    options: dict[str, Any] | None = None,
    task: str | None = "CAUSAL_LM",
) -> PeftConfig:
    """The config of a LoRA adapter without dropout.

    Args:
        targets: names of the adapted layers, or one of PEFT's words for them.
        rank: of the adapter.
        alpha: of the adapter; twice the rank if None.
        options: further fields of LoraConfig.
        task: PEFT's task type, which decides what is trained in full beside the adapter.

    Raises:
        RecipeError: an option that LoraConfig does not have, or one that it refuses.
    """
    _known("lora", options, LoraConfig)
    init = (options or {}).get("init_lora_weights")
    if isinstance(init, str) and init.partition("_")[0] in REPLACES_BASE:
        raise RecipeError(
            f"lora.init_lora_weights={init}",
            got="a start that takes a part out of the frozen weights",
            needed="the base as it was, against which drift and changed angles are measured",
            do="Choose another one: true, gaussian, orthogonal or eva",
        )
    # PEFT takes the head that it trains in full out of all-linear for SEQ_CLS alone.
    heads = list(HEADS.get(task or "", ())) if targets == "all-linear" and task != "SEQ_CLS" else None
    given = {
        "exclude_modules": heads,
        "r": rank,
        "lora_alpha": alpha or 2 * rank,
        "lora_dropout": 0.0,
        **(options or {}),
    }
    try:
        return LoraConfig(target_modules=targets, task_type=task, **given)
    except (TypeError, ValueError) as fault:
        raise RecipeError(f"lora={options}", got=str(fault)) from fault


def matching_rank(model: Any, rotation: PeftConfig) -> tuple[int, int, int]:
    """The LoRA rank whose trainable parameters come nearest to those of ``rotation`` on the same layers.

    Returns:
        the rank, LoRA's parameters at that rank, and the rotation's parameters.
    """
    targets = rotation.target_modules
    wanted = _count_on_copy(model, rotation)
    one, two = (_count_on_copy(model, lora_config(targets, rank, task=rotation.task_type)) for rank in (1, 2))
    # A head that is trained in full beside the adapter has the same parameters at every rank.
    per_rank, beside = two - one, 2 * one - two
    rank = max(1, round((wanted - beside) / per_rank))
    return rank, beside + rank * per_rank, wanted


def trainable(model: nn.Module) -> tuple[int, int]:
    """How many parameters are trained, and how many there are.

    A quantized weight counts as many as it had before: several of its numbers share a stored one.
    """
    sizes = {parameter: _numel(parameter) for parameter in model.parameters()}
    packed = 0
    for module in model.modules():
        if (library := library_of(module)) is not None:
            bias = library.bias(module)
            sizes |= {p: 0 for p in module.parameters(recurse=False) if p is not bias and not p.requires_grad}
            packed += math.prod(library.features(module))
    return sum(size for p, size in sizes.items() if p.requires_grad), sum(sizes.values()) + packed


def _numel(parameter: nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))  # ZeRO-3 may have put the numbers away


def _known(key: str, options: dict[str, Any] | None, config: type[PeftConfig]) -> None:
    known = {field.name for field in dataclasses.fields(config)}
    for name in options or {}:
        if name not in known:
            close = nearest(name, known, count=1)
            do = f"Did you mean {close[0]!r}?" if close else None
            raise RecipeError(f"{key}.{name}", got=f"no such option of {config.__name__}", do=do)


def _count_on_copy(model: Any, config: PeftConfig) -> int:
    # On the meta device a copy of any model costs nothing.
    with torch.device("meta"):
        copy = type(model)._from_config(model.config)
    return trainable(get_peft_model(copy, config, low_cpu_mem_usage=True))[0]
