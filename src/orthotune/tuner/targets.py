"""Which modules are adapted when the user does not say, and which names were probably meant."""

from __future__ import annotations

import warnings
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers
from peft.utils import TRANSFORMERS_MODELS_TO_OFT_TARGET_MODULES_MAPPING
from torch import nn
from transformers.pytorch_utils import Conv1D

from orthotune.errors import TargetError, nearest
from orthotune.quantized.roster import library_of
from orthotune.tuner.layer_index import layer_index, wanted_layers

_ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
_JOINT_ATTENTION = [*_ATTENTION, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"]

#: diffusers classes; the attention layers, as the OFT paper adapts them
DIFFUSERS_TARGETS: dict[str, list[str]] = {
    "UNet2DConditionModel": _ATTENTION,
    "UNet2DModel": _ATTENTION,
    "PixArtTransformer2DModel": _ATTENTION,
    "SD3Transformer2DModel": _JOINT_ATTENTION,
    "FluxTransformer2DModel": _JOINT_ATTENTION,
    "Flux2Transformer2DModel": _JOINT_ATTENTION,
    "QwenImageTransformer2DModel": _JOINT_ATTENTION,
}

#: transformers model types that PEFT's table leaves out
TRANSFORMERS_TARGETS: dict[str, list[str] | str] = {
    **TRANSFORMERS_MODELS_TO_OFT_TARGET_MODULES_MAPPING,
    "clip": ["q_proj", "k_proj", "v_proj", "out_proj"],
    "clip_text_model": ["q_proj", "k_proj", "v_proj", "out_proj"],
}


#: kind of task -> what PEFT's host trains in full: modules whose names end so, with all that is in them
HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}


def default_targets(model_config: dict[str, Any], model: nn.Module) -> set[str] | str:
    """Target modules of an architecture.

    Raises:
        TargetError: the architecture is not known; names the linear layers that it has.

    Example:
        >>> sorted(default_targets({"model_type": "llama"}, nn.Identity()))
        ['q_proj', 'v_proj']
    """
    kind = model_config.get("model_type") or type(model).__name__
    found = TRANSFORMERS_TARGETS.get(str(kind)) or DIFFUSERS_TARGETS.get(str(kind))
    if found is None:
        raise TargetError(
            f"target_modules for a model of type {kind!r}",
            got="no default for it",
            needed=f"names such as {', '.join(linear_names(model)[:8]) or '(the model has no linear layer)'}",
            do='Pass target_modules, for example target_modules="all-linear"',
        )
    return found if isinstance(found, str) else set(found)


def include_all_linear(config: PeftConfig, model: nn.Module) -> None:
    """Replace ``target_modules="all-linear"`` by names, as PEFT does, which passes over most quantized layers."""
    targets = getattr(config, "target_modules", None)
    if not (isinstance(targets, str) and targets.lower() == "all-linear"):
        return
    _maybe_include_all_linear_layers(config, model)
    ask: Any = getattr(model, "get_output_embeddings", None)
    head = ask() if ask else None
    found, quantized = (
        vars(config)["target_modules"],
        [key for key, module in model.named_modules() if module is not head and library_of(module)],
    )
    wanted = {*found, *(key.removesuffix(".base_layer") for key in quantized)}
    inside = tuple(f"{key}." for key in quantized)  # such as the float layer that HQQ can keep
    ends = HEADS.get(str(getattr(config.task_type, "value", config.task_type)), ())
    heads = tuple(f"{key}." for key, _ in model.named_modules() if ends and key.endswith(ends))
    wanted = {key for key in wanted if not key.startswith(inside) and not f"{key}.".startswith(heads)}
    layers = wanted_layers(config)  # whole names pass PEFT's own check of the layer
    if layers and not (wanted := {key for key in wanted if layer_index(config, key) in layers}):
        raise TargetError(
            f'target_modules="all-linear" with layers_to_transform={config.layers_to_transform}',
            got="no linear layer in them",
            needed=f"indices of layers that a {type(model).__name__} has",
        )
    vars(config)["target_modules"] = wanted


def linear_names(model: nn.Module) -> list[str]:
    """Last names of the linear layers of a model, each once, in order of appearance."""
    names = (
        key.rpartition(".")[2]
        for key, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) or library_of(module)
    )
    return list(dict.fromkeys(name for name in names if name))


def _last_names(model: nn.Module) -> list[str]:
    keys = [key for key, _ in model.named_modules() if key] + [key for key, _ in model.named_parameters()]
    return list(dict.fromkeys(key.rpartition(".")[2] for key in keys))


def warn_unmatched(targets: Any, matched: list[str], model: nn.Module) -> None:
    """Warn about names of a list that no module has: PEFT passes over a misspelt one in silence."""
    for name in sorted(targets) if isinstance(targets, (set, list)) else ():
        if not any(key == name or key.endswith(f".{name}") for key in matched):
            near = nearest(name.rpartition(".")[2], _last_names(model))
            hint = f" The nearest names are {', '.join(near)}." if near else ""
            warnings.warn(
                f"target_modules: no module of {type(model).__name__} is called '{name}'.{hint}", stacklevel=4
            )


def no_match(targets: Any, parameters: Any, model: nn.Module, because: str) -> TargetError:
    """The error for names that no module has, with the nearest names of modules that exist."""
    wanted = [targets] if isinstance(targets, str) else sorted(targets or [])
    wanted += sorted(parameters or [])
    known = _last_names(model)
    near = list(dict.fromkeys(match for name in wanted for match in nearest(name.rpartition(".")[2], known)))
    return TargetError(
        f"target_modules={wanted}",
        got=because,
        needed=f"names of modules of {type(model).__name__}, such as {', '.join((near or linear_names(model))[:6])}",
        do='Correct target_modules, or use "all-linear"',
    )
