"""Add an adapter to an image model, count its parameters, merge it."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from typing import Any

import torch
from peft import PeftConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from orthotune.errors import ConfigError
from orthotune.image.adapter.settings import AdapterSettings
from orthotune.image.adapter.targets import adapted_modules, component, target_names, with_weight
from orthotune.image.families.pipeline_family import PipelineFamily
from orthotune.runs.adapters import lora_config, rotation_config

NAME = "default"


def add_adapter(family: PipelineFamily, settings: AdapterSettings) -> dict[str, nn.Module]:
    """Add the adapter that ``settings`` describe. Afterwards only its parameters, in float32, require gradients.

    Args:
        family: the pipeline, changed in place.
        settings: of the adapter; method ``full`` trains the weights themselves.

    Returns:
        component -> its module in the pipeline.

    Raises:
        TargetError: no module matches.
        ConfigError: a component has an adapter already.
        BlockSizeError: a block size does not fit a layer.
    """
    names = adapted_modules(family, settings)
    parts = {name: component(family, name) for name in names}
    for name, part in parts.items():
        if any(isinstance(module, BaseTunerLayer) for module in part.modules()):
            raise ConfigError(f"an adapter for {name}", got="an adapter that is there already", do="Merge it first")
    if settings.method == "lora" and settings.lora_rank is None:
        settings = dataclasses.replace(settings, lora_rank=matching_rank(family, settings)[0])
    for name, part in parts.items():
        _adapt(part, names[name], family, name, settings)
        for parameter in part.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return parts


def matching_rank(family: PipelineFamily, settings: AdapterSettings) -> tuple[int, int, int]:
    """The LoRA rank whose number of parameters is nearest to that of the rotations on the same layers.

    Args:
        family: the pipeline; it is not changed.
        settings: of the adapter.

    Returns:
        The rank, the parameters of LoRA at that rank, and the parameters of the rotations.
    """
    method = settings.method if settings.method in ("oft", "coft") else "oft"
    wanted = _count_on_copy(family, dataclasses.replace(settings, method=method))
    per_rank = _count_on_copy(family, dataclasses.replace(settings, method="lora", lora_rank=1))
    rank = max(1, round(wanted / per_rank))
    return rank, rank * per_rank, wanted


def trained(family: PipelineFamily) -> dict[str, nn.Parameter]:
    """``component.name`` -> parameter, for all parameters that require gradients."""
    return {
        f"{part}.{name}": parameter
        for part in (family.denoiser_name, *family.text_encoders)
        for name, parameter in component(family, part).named_parameters()
        if parameter.requires_grad
    }


def merge(family: PipelineFamily) -> None:
    """Merge the adapter into the weights; :func:`unmerge` undoes this."""
    for layer in _layers(family):
        layer.merge(safe_merge=True)


def unmerge(family: PipelineFamily) -> None:
    """Restore the weights: bit for bit under a rotation, by subtraction under LoRA, as PEFT does."""
    for layer in _layers(family):
        layer.unmerge()


def _config(family: PipelineFamily, name: str, adapted: list[str], settings: AdapterSettings) -> PeftConfig:
    # Short names if they match the same modules: readable, and valid for models of other depths.
    ends = target_names(family, settings)[name]
    idle = set(with_weight(component(family, name), ends)) - set(adapted)
    if settings.method == "lora":
        assert settings.lora_rank is not None
        config: Any = lora_config(ends, settings.lora_rank, settings.lora_alpha, dict(settings.lora))
    else:
        config = rotation_config(
            ends, block_size=settings.block_size, r=settings.r, coft=settings.method == "coft",
            eps=settings.eps if settings.method == "coft" else None, options=dict(settings.rotation),
        )  # fmt: skip
    config.task_type = None
    if idle:
        config.exclude_modules = idle
    return config


def _adapt(part: nn.Module, adapted: list[str], family: PipelineFamily, name: str, settings: AdapterSettings) -> None:
    if settings.method == "full":
        for key in adapted:
            weight: Any = part.get_submodule(key).weight
            weight.requires_grad_(True)
        return
    config = _config(family, name, adapted, settings)
    add: Any = getattr(part, "add_adapter", None)  # diffusers' models and transformers' have it
    if add is not None:
        add(config, adapter_name=NAME)
    else:
        inject_adapter_in_model(config, part, NAME)


def _count_on_copy(family: PipelineFamily, settings: AdapterSettings) -> int:
    count = 0
    for name, adapted in adapted_modules(family, settings).items():
        part = component(family, name)  # on the meta device a copy costs nothing
        memo: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), False) for p in part.parameters()}
        memo |= {id(buffer): buffer.to("meta") for buffer in part.buffers()}
        bare = copy.deepcopy(part, memo).requires_grad_(False)
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the same warnings are shown for the model itself
            _adapt(bare, adapted, family, name, settings)
        count += sum(p.numel() for p in bare.parameters() if p.requires_grad)
    return count


def _layers(family: PipelineFamily) -> list[BaseTunerLayer]:
    parts = [component(family, name) for name in (family.denoiser_name, *family.text_encoders)]
    return [module for part in parts for module in part.modules() if isinstance(module, BaseTunerLayer)]
