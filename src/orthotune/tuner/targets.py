"""Find the modules that a config names, and warn once about names that match none."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import (
    _ExcludedModule,
    _maybe_include_all_linear_layers,
    check_target_module_exists,
)
from peft.utils import TRANSFORMERS_MODELS_TO_OFT_TARGET_MODULES_MAPPING
from torch import nn
from transformers.pytorch_utils import Conv1D

from orthotune.errors import TargetError, nearest
from orthotune.formats.peft.sizes import size_key_means
from orthotune.quantized.registry import library_of
from orthotune.tuner.places import Places, adapted_layers, calls_some, is_called, plain_name

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
    "ChromaTransformer2DModel": _JOINT_ATTENTION,
    "AuraFlowTransformer2DModel": _JOINT_ATTENTION,
    "HunyuanVideoTransformer3DModel": _JOINT_ATTENTION,
    "ZImageTransformer2DModel": _ATTENTION,
    "Lumina2Transformer2DModel": _ATTENTION,
    "SanaTransformer2DModel": _ATTENTION,
    "WanTransformer3DModel": _ATTENTION,
    "Krea2Transformer2DModel": _ATTENTION,
    "LTXVideoTransformer3DModel": _ATTENTION,
    "LTX2VideoTransformer3DModel": [f"{block}.{name}" for block in ("attn1", "attn2") for name in _ATTENTION],
    "HiDreamImageTransformer2DModel": [
        "to_q",
        "to_k",
        "to_v",
        "to_out",
        "to_q_t",
        "to_k_t",
        "to_v_t",
        "to_out_t",
    ],
    "HunyuanVideo15Transformer3DModel": _JOINT_ATTENTION,
    "Ideogram4Transformer2DModel": _ATTENTION,
}

#: transformers model types that are missing in PEFT's table
TRANSFORMERS_TARGETS: dict[str, list[str] | str] = {
    **TRANSFORMERS_MODELS_TO_OFT_TARGET_MODULES_MAPPING,
    "clip": ["q_proj", "k_proj", "v_proj", "out_proj"],
    "clip_text_model": ["q_proj", "k_proj", "v_proj", "out_proj"],
}

#: kind of task -> ends of the names of modules that PEFT trains fully, including their submodules
HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}

#: the list is the model itself, or one of its own children
AT_ROOT = re.compile(r"(?:[^.]+\.)?(?P<idx>\d+)\.")
#: otherwise the first numbered name, as in PEFT
BELOW = re.compile(r".*?\.[^.]*\.(?P<idx>\d+)\.")

#: warnings of PEFT that the warnings of this module replace
PEFTS_OWN = ("The following rank_pattern keys did not match", "You have passed exclude_modules=")


def default_targets(model_config: dict[str, Any], model: nn.Module) -> set[str] | str:
    """Target modules of an architecture.

    Raises:
        TargetError: the architecture is unknown; names its linear layers.

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


def wanted_layers(config: Any) -> list[int]:
    """The indices of ``layers_to_transform``; none when every layer is meant."""
    found = getattr(config, "layers_to_transform", None)
    return [] if found is None else [found] if isinstance(found, int) else list(found)


def layer_index(config: Any, key: str) -> int | None:
    """The index of the layer that the module ``key`` is in; None when it is in no layer.

    Example:
        >>> from orthotune import OFTConfig
        >>> layer_index(OFTConfig(), "layers.1.experts.0.up"), layer_index(OFTConfig(), "model.layers.2.up")
        (1, 2)
    """
    patterns = getattr(config, "layers_pattern", None) or []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if match := re.match(rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\.", key):
            return int(match["idx"])
    if patterns:
        return None
    match = AT_ROOT.match(key) or BELOW.match(key)
    return int(match["idx"]) if match else None


def is_target(config: Any, names: Sequence[str]) -> Any:
    """Whether a config means the module with these names: PEFT's rules, for each of them.

    Args:
        config: an ``OFTConfig``.
        names: all names of one module.

    Returns:
        True or a match; False; or PEFT's mark for a module that is skipped on purpose, which counts as False.
    """
    found: Any = False
    for name in names:
        one = check_target_module_exists(config, name)
        if isinstance(one, _ExcludedModule):
            return one
        targets = config.target_modules
        listed = isinstance(targets, (list, set, tuple)) and name not in targets
        if listed and wanted_layers(config) and any(name.endswith(f".{target}") for target in targets):
            # PEFT looks for a list below the root only, and takes an expert's number for a layer's.
            one = layer_index(config, name) in wanted_layers(config)
        found = found or one
    return found


def include_all_linear(config: PeftConfig, model: nn.Module) -> None:
    """Replace ``target_modules="all-linear"`` by names, as PEFT does, which passes over most quantized layers."""
    targets = getattr(config, "target_modules", None)
    if not (isinstance(targets, str) and targets.lower() == "all-linear"):
        return
    _maybe_include_all_linear_layers(config, model)
    ask: Any = getattr(model, "get_output_embeddings", None)
    head = ask() if ask else None
    quantized = [key for key, module in model.named_modules() if module is not head and library_of(module)]
    wanted = {*vars(config)["target_modules"], *(key.removesuffix(".base_layer") for key in quantized)}
    inside = tuple(f"{key}." for key in quantized)  # such as the float layer that HQQ can keep
    ends = HEADS.get(str(getattr(config.task_type, "value", config.task_type)), ())
    heads = tuple(f"{key}." for key, _ in model.named_modules() if ends and key.endswith(ends))
    wanted = {key for key in wanted if not key.startswith(inside) and not f"{key}.".startswith(heads)}
    wanted = {key for key in wanted if not _trained_in_full(config, key)}
    layers = wanted_layers(config)  # full names pass PEFT's own check of the layer
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
        if not calls_some(name, matched):
            near = _near(name, model)
            hint = f" The nearest names are {', '.join(near)}." if near else ""
            warnings.warn(
                f"target_modules: no module of {type(model).__name__} is called '{name}'.{hint}", stacklevel=4
            )


def unmatched_targets(targets: Any, model: nn.Module) -> dict[str, list[str]]:
    """The names of a list of target modules that no module has, each with the nearest names of the model.

    Example:
        >>> unmatched_targets(["q_prj", "v_proj"], nn.ModuleDict({"q_proj": nn.Identity(), "v_proj": nn.Identity()}))
        {'q_prj': ['q_proj', 'v_proj']}
    """
    keys = [key for key, _ in model.named_modules() if key]
    names = sorted(targets) if isinstance(targets, (set, list, tuple)) else ()
    return {name: _near(name, model) for name in names if not calls_some(name, keys)}


def _near(name: str, model: nn.Module) -> list[str]:
    return nearest(name.rpartition(".")[2], _last_names(model))


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


def warn_unmatched_keys(config: Any, adapter_name: str, model: nn.Module) -> None:
    """Warn about keys, names and indices of a config that fit no layer, with the nearest names.

    Of a config that was read from a file only ``layer_settings`` are checked: its layers are those of the tensors
    beside it, and names that the writer's model did not have are no mistake of the reader's.

    Args:
        config: an ``OFTConfig``, its adapter in the model.
        adapter_name: the adapter.
        model: the adapted model.
    """
    places = Places(model)
    adapted = dict.fromkeys(
        plain_name(name)
        for key, layer in adapted_layers(model, adapter_name)
        for name in (*places.names(key), layer.oft_settings[adapter_name].layer)
    )
    known = [plain_name(key) for key, _ in model.named_modules(remove_duplicate=False) if key]
    parameters = [plain_name(key) for key, _ in model.named_parameters(remove_duplicate=False)]
    wrong = list(_unused("layer_settings", [k for k in config.layer_settings if k not in adapted], adapted))
    if not config.load_context.saved:
        for field in ("rank_pattern", "block_size_pattern"):
            wrong += _unused(field, _never_chosen(getattr(config, field), adapted), adapted)
        wrong += _unused("exclude_modules", _excluding_nothing(config.exclude_modules, known), known)
        wrong += _unused("modules_to_save", _saving_nothing(config.modules_to_save, known), known)
        wrong += _saved_targets(config, known)
        missing = [t for t in config.target_parameters or [] if not calls_some(t, parameters)]
        wrong += _unused("target_parameters", missing, parameters)
        wrong += _layers(config, adapted, known)
    if wrong:
        warnings.warn(f"Adapter '{adapter_name}': {'; '.join(wrong)}. These entries have no effect.", stacklevel=5)


def _unused(field: str, keys: Iterable[str], known: Iterable[str]) -> Iterator[str]:
    for key in keys:
        full, last = list(known), list(dict.fromkeys(name.rpartition(".")[2] for name in known))
        near = nearest(key, full) if "." in key else nearest(key, last)
        hint = f" (the nearest names are {', '.join(near)})" if near else ""
        yield f"{field} has '{key[:80]}', which fits no layer{hint}"


def _never_chosen(pattern: Mapping[str, int], adapted: Iterable[str]) -> list[str]:
    """Keys that give no layer its size: none fits, or an earlier key fits the same layers."""
    chosen = set()
    for name in adapted:
        chosen.add(next((key for key in pattern if size_key_means(key, name)), None))
    return [key for key in pattern if key not in chosen]


def _excluding_nothing(excluded: Any, known: list[str]) -> list[str]:
    if isinstance(excluded, str):
        return [] if not excluded or any(re.fullmatch(excluded, name) for name in known) else [excluded]
    return [name for name in sorted(excluded or []) if not calls_some(name, known)]


def _saving_nothing(saved: Any, known: list[str]) -> list[str]:
    added = set(chain.from_iterable(HEADS.values()))  # by the kind of task, whichever the model has
    wanted = [name for name in saved or [] if name not in added]
    return [name for name in wanted if not any(key.endswith(name) for key in known)]


def _trained_in_full(config: Any, key: str) -> bool:
    """Whether ``modules_to_save`` has the module, or one around it: PEFT's host puts no adapter on those."""
    return any(re.match(rf"(^|.*\.){name}($|\..*)", key) for name in config.modules_to_save or [])


def _saved_targets(config: Any, known: list[str]) -> Iterator[str]:
    targets = config.target_modules
    for target in sorted(targets) if isinstance(targets, (list, set)) else ():
        called = [key for key in known if is_called(key, target)]
        if called and all(_trained_in_full(config, key) for key in called):
            yield f"target_modules has '{target}', which modules_to_save trains in full instead of rotating it"


def _layers(config: Any, adapted: Iterable[str], known: list[str]) -> Iterator[str]:
    wanted = wanted_layers(config)
    if not wanted:
        return
    if isinstance(config.target_modules, str):
        yield "layers_to_transform is not used, because target_modules is a regular expression"
        return
    found = {layer_index(config, name) for name in adapted}
    if missing := [index for index in wanted if index not in found]:
        there = sorted(index for index in {layer_index(config, name) for name in known} if index is not None)
        span = f"{there[0]} to {there[-1]}" if there else "none"
        yield f"layers_to_transform has {', '.join(map(str, missing))}, which no adapted layer has (layers: {span})"
    patterns = config.layers_pattern or []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if not any(re.match(rf"(?:^|.*?\.){pattern}\.\d+(\.|$)", name) for name in known):
            yield f"layers_pattern has '{pattern}', which is not the name of a list of layers"
