"""Modules by the names that an older version of transformers gave them, by transformers' own table for its checkpoints.

Before 4.52 a vision-language model held its language model as ``language_model.model``; today as
``model.language_model``. An adapter names modules as the version that it was trained with.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from orthotune.layers.base import OFTLayer


def todays_names(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Names that a model does not have -> the names that its modules have today.

    Args:
        model: a model of transformers, or one around it.
        names: of modules, as a file has them.

    Returns:
        Every name that is not the model's, or none: where one of them has no module today, the adapter belongs to
        another model.
    """
    whole: Any = model
    base = whole.get_base_model() if hasattr(whole, "get_base_model") else whole
    renaming = _renaming(base)
    if renaming is None:
        return {}
    names = list(names)
    known = {re.sub(r"\.base_layer(?=\.|$)", "", key) for key, _ in base.named_modules(remove_duplicate=False)}
    strange = [name for name in names if name not in known]
    found = {name: renaming(f"{name}.weight").removesuffix(".weight") for name in strange}
    taken = {*found.values(), *(name for name in names if name in known)}
    if not found or not set(found.values()) <= known or len(taken) < len(names):
        return {}
    old, new = next(iter(found.items()))
    warnings.warn(
        f"The adapter names {len(found)} modules as an older version of transformers did: '{old}' is '{new}' in this "
        f"{type(base).__name__}.",
        stacklevel=4,
    )
    return found


def _renaming(base: nn.Module) -> Callable[[str], str] | None:
    """The table of a model's class, applied to a key; None when there is none."""
    table: Any = getattr(base, "_checkpoint_conversion_mapping", None)  # transformers 4
    if table:
        pairs = dict(table).items()
        return lambda key: next((re.sub(old, new, key) for old, new in pairs if re.search(old, key)), key)
    if not hasattr(base, "config") or not hasattr(base, "base_model_prefix"):
        return None
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming
    except ImportError:
        return None
    steps = [step for step in get_model_conversion_mapping(base) if type(step) is WeightRenaming]
    if not steps:
        return None

    def rename(key: str) -> str:
        for step in steps:
            key = step.rename_source_key(key)[0]
        return key

    return rename


def use_todays_names(config: Any, model: nn.Module) -> None:
    """Put today's names into the fields of a config from a file that name modules in full."""
    if not config.read_from_file:
        return
    targets = config.target_modules
    known = [key for key, _ in model.named_modules(remove_duplicate=False)]
    whole = [name for name in targets if "." in name] if isinstance(targets, (list, set)) else []
    strange = [name for name in whole if not any(key == name or key.endswith(f".{name}") for key in known)]
    strange += [name for name in config.layer_settings if name not in known and name not in strange]
    new = todays_names(model, strange) if strange else {}
    if new:
        if isinstance(targets, (list, set)):
            config.target_modules = {new.get(name, name) for name in targets}
        config.layer_settings = {new.get(name, name): own for name, own in config.layer_settings.items()}


KEY = re.compile(
    r"(?P<prefix>base_model\.model\.)?(?P<layer>.+)(?P<rest>\.(oft_R|oft_embedding_R|oft_magnitude)(\..*)?)"
)


def rename_keys(model: nn.Module, adapter_name: str, keys: Iterable[str]) -> dict[str, str]:
    """The keys of a file's rotations that name modules as older versions did -> the same with today's names."""
    split = {key: match for key in keys if (match := KEY.fullmatch(key))}
    prefix = "base_model.model."
    layers = {
        re.sub(r"\.base_layer(?=\.|$)", "", key.removeprefix(prefix))
        for key, layer in model.named_modules(remove_duplicate=False)
        if isinstance(layer, OFTLayer) and adapter_name in layer.oft_settings
    }
    strange = [match["layer"] for match in split.values() if match["layer"] not in layers]
    new = todays_names(model, list(dict.fromkeys(strange))) if strange else {}
    return {
        key: f"{match['prefix'] or ''}{new[match['layer']]}{match['rest']}"
        for key, match in split.items()
        if match["layer"] in new
    }
