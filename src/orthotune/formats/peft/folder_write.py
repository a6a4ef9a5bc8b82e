"""PEFT's folder, for the version that is to load it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from orthotune.errors import UnsupportedLayerError
from orthotune.files.json_file import write_json
from orthotune.files.safetensors_file import write_tensors
from orthotune.formats.adapter_file import CONFIG_NAME, WEIGHTS_NAME
from orthotune.formats.adapter_state import AdapterState, LayerState
from orthotune.formats.codecs.boft_r_write import boft_tensors, one_size
from orthotune.formats.codecs.oft_blocks import dense
from orthotune.formats.names.spelling import dotted
from orthotune.formats.peft.beyond_stock import FORMAT_VERSION, ORTHOTUNE_TYPE
from orthotune.formats.peft.fields import fields_of_spec
from orthotune.formats.peft.layer_settings import in_common
from orthotune.formats.peft.names import PREFIX
from orthotune.formats.peft.sizes import common_size, counts_of

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
        config |= _one(layers, "block_share")
        config |= counts_of(layers) if target == "peft-0.8" else common_size(layers, state.config)
    else:
        tensors = _packed(state, keys)
        if target == "orthotune":
            usual, own = in_common({name: layer.plain().spec for name, layer in layers.items()})
            config |= fields_of_spec(usual) | {"format_version": FORMAT_VERSION, "layer_settings": own}
        else:
            config |= _one(layers, "block_share", "use_cayley_neumann", "num_cayley_neumann_terms")
            config |= common_size(layers, state.config)
    if state.config.get("peft_type"):  # what PEFT trained beside the rotations, as modules_to_save
        tensors |= {PREFIX + name: tensor for name, tensor in state.other.items()}
        config |= {key: state.config[key] for key in ("modules_to_save", "bias") if key in state.config}
    write_tensors(folder / WEIGHTS_NAME, tensors, {"format": "pt"})
    write_json(folder / CONFIG_NAME, config, sort_keys=True, nan_as_null=False)
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


def _one(layers: Mapping[str, LayerState], *names: str) -> dict[str, Any]:
    """Fields of PEFT's that no layer can have for itself."""
    fields = [fields_of_spec(layer.spec) for layer in layers.values()]
    for name in names:
        if len(found := {own[name] for own in fields}) > 1:
            raise UnsupportedLayerError(
                "one config for all layers", got=f"layers with {name} {' and '.join(sorted(map(str, found)))}",
                do="Write a single file instead, for a tool that takes each layer's own",
            )  # fmt: skip
    return {name: fields[0][name] for name in names}
