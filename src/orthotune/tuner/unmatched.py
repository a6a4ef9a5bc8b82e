"""Names in a config that fit nothing in the model: one warning when the adapter is put in."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn

from orthotune.errors import nearest
from orthotune.layers.base import OFTLayer
from orthotune.tuner.layer_index import layer_index, wanted_layers
from orthotune.tuner.places import Places
from orthotune.tuner.sizes import _lookup

#: PEFT's host adds them by the kind of task, whichever the model has
HEADS = ("classifier", "score", "qa_outputs")
#: what PEFT warns about by itself, in part, and this module as a whole
PEFTS_OWN = ("The following rank_pattern keys did not match", "You have passed exclude_modules=")


def warn_unmatched_keys(config: Any, adapter_name: str, model: nn.Module) -> None:
    """Warn about keys, names and indices of a config that fit no layer, with the nearest names.

    A config that was read from a file is asked for its ``layer_settings`` alone: the tensors beside it say which layers
    it has, and what its writer's model did not have is none of the reader's business.

    Args:
        config: an ``OFTConfig``, its adapter in the model.
        adapter_name: the adapter.
        model: the adapted model.
    """
    places = Places(model)
    adapted = {
        name.replace(".base_layer", ""): module
        for key, module in model.named_modules()
        if isinstance(module, OFTLayer) and adapter_name in module.oft_settings
        for name in (*places.names(key), module.oft_settings[adapter_name].layer)
    }
    known = [key.replace(".base_layer", "") for key, _ in model.named_modules(remove_duplicate=False) if key]
    parameters = [key.replace(".base_layer", "") for key, _ in model.named_parameters(remove_duplicate=False)]
    wrong = list(_unused("layer_settings", [k for k in config.layer_settings if k not in adapted], adapted))
    if not config.read_from_file:
        for field in ("rank_pattern", "block_size_pattern"):
            wrong += _unused(field, _never_chosen(getattr(config, field), adapted), adapted)
        wrong += _unused("exclude_modules", _excluding_nothing(config.exclude_modules, known), known)
        wrong += _unused("modules_to_save", _saving_nothing(config.modules_to_save, known), known)
        missing = [t for t in config.target_parameters or [] if not _ends_some(t, parameters)]
        wrong += _unused("target_parameters", missing, parameters)
        wrong += _layers(config, adapted, known)
    if wrong:
        warnings.warn(
            f"Adapter '{adapter_name}': {'; '.join(wrong)}. What they ask for applies to no layer.", stacklevel=5
        )


def settle_order(config: Any, adapter_name: str, model: nn.Module) -> None:
    """Name layers in full in patterns whose order counts: a file has the keys of a config in the order of letters.

    Args:
        config: an ``OFTConfig``, its adapter in the model; its patterns mean the same afterwards.
        adapter_name: the adapter.
        model: the adapted model.
    """
    layers = [
        module.oft_settings[adapter_name].layer
        for module in model.modules()
        if isinstance(module, OFTLayer) and adapter_name in module.oft_settings
    ]
    for field in ("rank_pattern", "block_size_pattern"):
        pattern = getattr(config, field)
        sizes = {name: _lookup(pattern, name) for name in layers}
        if any(_lookup(dict(sorted(pattern.items())), name) != size for name, size in sizes.items()):
            setattr(config, field, {f"^{re.escape(name)}": size for name, size in sizes.items() if size is not None})


def _unused(field: str, keys: Iterable[str], known: Iterable[str]) -> Iterator[str]:
    for key in keys:
        whole, last = list(known), list(dict.fromkeys(name.rpartition(".")[2] for name in known))
        near = nearest(key, whole) if "." in key else nearest(key, last)
        hint = f" (the nearest names are {', '.join(near)})" if near else ""
        yield f"{field} has '{key[:80]}', which fits no layer{hint}"


def _never_chosen(pattern: Mapping[str, int], adapted: Iterable[str]) -> list[str]:
    """Keys that give no layer its size: none fits, or an earlier key fits the same layers."""
    chosen = set()
    for name in adapted:
        chosen.add(next((key for key in pattern if re.match(rf"(.*\.)?({key})$", name)), None))
    return [key for key in pattern if key not in chosen]


def _excluding_nothing(excluded: Any, known: list[str]) -> list[str]:
    if isinstance(excluded, str):
        return [] if not excluded or any(re.fullmatch(excluded, name) for name in known) else [excluded]
    return [name for name in sorted(excluded or []) if not _ends_some(name, known)]


def _saving_nothing(saved: Any, known: list[str]) -> list[str]:
    wanted = [name for name in saved or [] if name not in HEADS]
    return [name for name in wanted if not any(key.endswith(name) for key in known)]


def _ends_some(name: str, known: Iterable[str]) -> bool:
    return any(key == name or key.endswith(f".{name}") for key in known)


def _layers(config: Any, adapted: Iterable[str], known: list[str]) -> Iterator[str]:
    wanted = wanted_layers(config)
    if not wanted:
        return
    if isinstance(config.target_modules, str):
        yield "layers_to_transform is not used, as target_modules is a regular expression, which says the layers itself"
        return
    found = {layer_index(config, name) for name in adapted}
    if missing := [index for index in wanted if index not in found]:
        there = sorted(index for index in {layer_index(config, name) for name in known} if index is not None)
        span = f"{there[0]} to {there[-1]}" if there else "none"
        yield f"layers_to_transform has {', '.join(map(str, missing))}, which no adapted layer has (layers: {span})"
    patterns = config.layers_pattern or []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if not any(re.match(rf"(?:^|.*?\.){pattern}\.\d+(\.|$)", name) for name in known):
            yield f"layers_pattern has '{pattern}', and no list of layers is called so"
