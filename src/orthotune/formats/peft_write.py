"""PEFT's folder, for the version that is to load it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from orthotune.errors import UnsupportedLayerError
from orthotune.formats.adapter_file import CONFIG_NAME, WEIGHTS_NAME
from orthotune.formats.adapter_state import AdapterState, LayerState
from orthotune.formats.beyond_stock import FORMAT_VERSION, ORTHOTUNE_TYPE
from orthotune.formats.boft_r_write import boft_tensors, one_size
from orthotune.formats.layer_names import dotted
from orthotune.formats.oft_blocks import dense
from orthotune.formats.peft_names import PREFIX
from orthotune.formats.peft_sizes import common_size, counts_of
from orthotune.formats.safetensors_file import write_tensors

#: Fields that every version writes, or reads with the same meaning.
SHARED: dict[str, Any] = {
    "auto_mapping": None, "base_model_name_or_path": None, "inference_mode": True, "init_weights": True,
    "layers_pattern": None, "layers_to_transform": None, "modules_to_save": None, "revision": None, "task_type": None,
}  # fmt: skip
_OFT = {"module_dropout": 0.0, "coft": False, "eps": 6e-05}
_LATER = {"bias": "none", "exclude_modules": None, "fan_in_fan_out": False}
#: target -> the fields that tell its version; the series changed in 0.18, which also began to record the version
FIELDS: dict[str, dict[str, Any]] = {
    "peft-0.8": _OFT | {"peft_type": "OFT", "alpha_pattern": {}},
    "peft-0.14": _OFT | _LATER | {"peft_type": "OFT"},
    "peft-0.16": _OFT | _LATER | {"peft_type": "OFT", "r": 0},
    "peft": _OFT | _LATER | {"peft_type": "OFT", "r": 0, "peft_version": "0.18.0"},
    "orthotune": _OFT | _LATER | {"peft_type": ORTHOTUNE_TYPE, "r": 0, "peft_version": "0.18.0"},
    "peft-boft": _LATER | {"peft_type": "BOFT", "boft_dropout": 0.0, "peft_version": "0.18.0"},
}
#: a setting of a layer -> the field of orthotune's config that says it for all layers
FIELD_OF = {
    "block_size": "oft_block_size",
    "side": "side",
    "shared": "block_share",
    "magnitude": "magnitude",
    "exact": "use_cayley_neumann",
    "terms": "num_cayley_neumann_terms",
    "series": "neumann_series",
}


def write(state: AdapterState, folder: Path, target: str, modules: Mapping[str, list[str]] | None = None) -> Path:
    """The adapter's folder; the config comes last, so that a folder with a config is whole.

    Args:
        folder: where; made if it is not there.
        modules: component -> the base's modules, for names whose dots are underscores.

    Raises:
        UnsupportedLayerError: no single config gives every layer its blocks, or a name cannot be taken apart.
        OutputError: the files cannot be written.
    """
    names = dotted([*state.layers, *state.transforms], modules)
    keys = {name: PREFIX + module for name, module in names.items()}
    known = ("base_model_name_or_path", "task_type")
    config = SHARED | {key: state.config[key] for key in known if key in state.config}
    config |= FIELDS[target] | {"target_modules": sorted(names.values())}
    layers = {names[name]: layer for name, layer in state.layers.items()}
    if target == "peft-boft":
        tensors = boft_tensors(state, keys, conv_row=True)
        config |= one_size(tensors)
    elif target in ("peft-0.8", "peft-0.14"):
        tensors = _dense(state, keys, target)
        config |= _one(layers, "block_share", lambda layer: layer.shared)
        config |= counts_of(layers) if target == "peft-0.8" else common_size(layers, state.config)
    else:
        tensors = _packed(state, keys)
        if target == "orthotune":
            config |= _own(layers)
        else:
            config |= _one(layers, "block_share", lambda layer: layer.shared)
            config |= _one(layers, "use_cayley_neumann", lambda layer: layer.map != "exact")
            config |= _one(layers, "num_cayley_neumann_terms", lambda layer: layer.terms)
            config |= common_size(layers, state.config)
    if state.config.get("peft_type"):  # what PEFT trained beside the rotations, as modules_to_save
        tensors |= {PREFIX + name: tensor for name, tensor in state.other.items()}
        config |= {key: state.config[key] for key in ("modules_to_save", "bias") if key in state.config}
    write_tensors(folder / WEIGHTS_NAME, tensors, {"format": "pt"})
    path = folder / CONFIG_NAME
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    partial.replace(path)
    return folder


def _packed(state: AdapterState, keys: Mapping[str, str]) -> dict[str, Tensor]:
    tensors = {}
    for name, layer in state.layers.items():
        kind = "oft_embedding_R" if layer.embedding else "oft_R"
        for part in layer.rotations:
            tensors[f"{keys[name]}.{kind}.{part + '.' if part else ''}weight"] = layer.vector(part)
        if layer.magnitude is not None:
            tensors[f"{keys[name]}.oft_magnitude"] = layer.magnitude
    return tensors


def _dense(state: AdapterState, keys: Mapping[str, str], target: str) -> dict[str, Tensor]:
    tensors = {}
    for name, layer in state.layers.items():
        # C-((A - Aᵀ) / 2), transposed before 0.14
        tensors[f"{keys[name]}.oft_r"] = dense(layer.vector(), -1.0 if target == "peft-0.8" else 1.0)
        if target == "peft-0.14":
            assert layer.magnitude is not None
            tensors[f"{keys[name]}.oft_s"] = layer.magnitude.float().view(-1, 1)
    return tensors


def _own(layers: Mapping[str, LayerState]) -> dict[str, Any]:
    """What most layers have in common, and ``layer_settings`` for the rest."""
    settings = {name: _settings(layer) for name, layer in layers.items()}
    whole = {key: Counter(found[key] for found in settings.values()).most_common(1)[0][0] for key in FIELD_OF}
    own = {
        name: {key: value for key, value in found.items() if value != whole[key]} for name, found in settings.items()
    }
    fields = {FIELD_OF[key]: value for key, value in whole.items() if key != "exact"}
    fields |= {"use_cayley_neumann": not whole["exact"], "scaled": False, "format_version": FORMAT_VERSION}
    return fields | {"layer_settings": {name: found for name, found in own.items() if found}}


def _settings(layer: LayerState) -> dict[str, Any]:
    return {
        "block_size": layer.block_size(next(iter(layer.rotations))),
        "side": layer.side,
        "shared": layer.shared,
        "magnitude": layer.magnitude is not None,
        "exact": layer.map == "exact",
        "terms": layer.terms,
        "series": "legacy" if layer.map == "neumann_legacy" else "current",
    }


def _one(layers: Mapping[str, LayerState], field: str, value: Any) -> dict[str, Any]:
    found = {value(layer) for layer in layers.values()}
    if len(found) > 1:
        raise UnsupportedLayerError(
            "one config for all layers", got=f"layers with {field} {' and '.join(sorted(map(str, found)))}",
            do="Write a single file instead, for a tool that takes each layer's own",
        )  # fmt: skip
    return {field: found.pop()}
