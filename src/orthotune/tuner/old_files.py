"""Translate fields, tensors and module names of adapters that older versions of PEFT and transformers wrote.

Fields and tensors of PEFT before 0.16 have other meanings. PEFT 0.8 to 0.13 rotated the outputs by ``r`` blocks
(``oft_r``); 0.14 and 0.15 rotated the inputs and scaled the outputs (``oft_r``, ``oft_s``). Source: ``tuners/oft`` of
these versions.

Module names depend on the version of transformers in training: before 4.52 the language model of a vision-language
model was ``language_model.model``, today it is ``model.language_model``. Source: transformers' table for its
checkpoints.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from orthotune.errors import AdapterFileError
from orthotune.formats.adapter_file import AdapterFile
from orthotune.formats.read_options import ReadOptions
from orthotune.formats.registry import read_file
from orthotune.layers.settings import LayerSettings
from orthotune.tuner.places import adapted_layers, base_of, calls_some, plain_name

OldLayout = Literal["0.8", "0.14"]

#: what PEFT's host puts before every key of a PeftModel, in files too
PREFIX = "base_model.model."
#: containers of the tensors of PEFT before 0.16
OLD_CONTAINERS = (".oft_r", ".oft_s")
_ROTATION_KEY = re.compile(
    r"(?P<prefix>base_model\.model\.)?(?P<layer>.+)(?P<rest>\.(oft_R|oft_embedding_R|oft_magnitude)(\..*)?)"
)


def old_layout(fields: Mapping[str, Any]) -> OldLayout | None:
    """Which old layout a saved config describes: the first version that wrote it, or None for a present one.

    Example:
        >>> old_layout({"peft_type": "OFT", "r": 4})
        '0.8'
    """
    # 0.8 knew no block size, 0.15 no series; every later version writes all its fields.
    if fields.get("peft_type") != "OFT" or "use_cayley_neumann" in fields:
        return None
    return "0.14" if "oft_block_size" in fields else "0.8"


def translated(fields: Mapping[str, Any], layout: OldLayout) -> dict[str, Any]:
    """The fields of the present config that mean what the old ones did; the numbers are translated with them.

    Args:
        fields: as they were saved.
        layout: which version's.

    Example:
        >>> translated({"peft_type": "OFT", "r": 4}, "0.8")["side"]
        'out'
    """
    new = {**fields, "use_cayley_neumann": False, "oft_block_size": fields.get("oft_block_size") or 0}
    if layout == "0.8":
        new["side"] = "out"
    else:
        new["magnitude"] = True
        new.pop("rank_pattern", None)  # PEFT wrote the field but never applied it
    if fields.get("coft"):
        new["coft"] = False
        warnings.warn(
            "The adapter was trained with an older COFT constraint, which cannot continue. It is loaded without "
            "a constraint and computes the same; further training is unconstrained.",
            stacklevel=4,
        )
    return new


def is_old_key(key: str) -> bool:
    """Whether PEFT before 0.16 named a tensor so.

    Example:
        >>> is_old_key("lin.oft_r"), is_old_key("lin.oft_R.weight")
        (True, False)
    """
    return key.endswith(OLD_CONTAINERS) or any(f"{container}." in key for container in OLD_CONTAINERS)


def translated_state(
    model: nn.Module, fields: Mapping[str, Any], adapter_name: str, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Translate an old state dict to the present layout.

    Layers that no rotation can represent (truncated blocks of PEFT before 0.14, whose number does not divide the
    outputs) are not in the result; they get a frozen map of the weight.

    Args:
        model: already has the layers of the translated config.
        fields: the config as it was saved.
        adapter_name: the adapter.
        tensors: as they were saved.

    Raises:
        AdapterFileError: a tensor has a shape that no version wrote, or does not fit its layer.
    """
    file = AdapterFile(
        Path("the adapter"), {name: tuple(t.shape) for name, t in tensors.items()},
        lambda names: {name: tensors[name] for name in names}, fields,
    )  # fmt: skip
    state = read_file(file, ReadOptions())
    layers = {name.removeprefix(PREFIX): layer for name, layer in adapted_layers(model, adapter_name)}
    new = {f"{PREFIX}{name}": tensor for name, tensor in state.other.items()}
    for name, held in state.layers.items():
        layer = layers.get(name)
        if layer is not None and held.truncated:
            weight = layer.get_base_layer().weight
            if not _runs(held, weight.shape[1 if isinstance(layer.get_base_layer(), Conv1D) else 0], name):
                layer.update_layer(adapter_name, LayerSettings(name, held.spec, frozen=held))
                continue
        stem = f"{PREFIX}{name}"
        new[f"{stem}.oft_R.weight"] = held.rotations[""]
        if held.magnitude is not None:
            new[f"{stem}.oft_magnitude"] = held.magnitude
    return new


def _runs(held: Any, features: int, name: str) -> bool:
    try:
        return bool(held.runs_on(features))
    except AdapterFileError as error:
        raise AdapterFileError(f"layer '{name}'", got=error.got, needed=error.needed, do=error.do) from error


def todays_names(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Names that a model does not have -> the names that its modules have today.

    Args:
        model: a model of transformers, or one around it.
        names: of modules, as a file has them.

    Returns:
        Every name that is not the model's, or none: where one of them has no module today, the adapter belongs to
        another model.
    """
    base = base_of(model)
    renaming = _renaming(base)
    if renaming is None:
        return {}
    names = list(names)
    known = {plain_name(key) for key, _ in base.named_modules(remove_duplicate=False)}
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
    """Put today's names into the fields of a config from a file that name modules in full.

    Args:
        config: an ``OFTConfig``; one that was not read from a file stays as it is.
        model: the model that it is for.
    """
    if not config.load_context.saved:
        return
    targets = config.target_modules
    known = [key for key, _ in model.named_modules(remove_duplicate=False)]
    full = [name for name in targets if "." in name] if isinstance(targets, (list, set)) else []
    strange = [name for name in full if not calls_some(name, known)]
    strange += [name for name in config.layer_settings if name not in known and name not in strange]
    new = todays_names(model, strange) if strange else {}
    if new:
        if isinstance(targets, (list, set)):
            config.target_modules = {new.get(name, name) for name in targets}
        config.layer_settings = {new.get(name, name): own for name, own in config.layer_settings.items()}


def rename_keys(model: nn.Module, adapter_name: str, keys: Iterable[str]) -> dict[str, str]:
    """The keys of a file's rotations that name modules as older versions did -> the same with today's names.

    Args:
        model: already has the layers of the adapter.
        adapter_name: the adapter.
        keys: of the file.
    """
    split = {key: match for key in keys if (match := _ROTATION_KEY.fullmatch(key))}
    found = adapted_layers(model, adapter_name, every_name=True)
    layers = {plain_name(key.removeprefix(PREFIX)) for key, _ in found}
    strange = [match["layer"] for match in split.values() if match["layer"] not in layers]
    new = todays_names(model, list(dict.fromkeys(strange))) if strange else {}
    return {
        key: f"{match['prefix'] or ''}{new[match['layer']]}{match['rest']}"
        for key, match in split.items()
        if match["layer"] in new
    }
