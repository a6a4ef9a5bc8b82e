"""Quantized layers become plain ones, with adapters merged in float; the model stops saying that it is quantized."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from orthotune.layers.base import OFTLayer
from orthotune.layers.quantized_linear import QuantizedLinear
from orthotune.quantized.dense import dense
from orthotune.quantized.roster import library_of


def make_dense(model: nn.Module, adapter_names: list[str] | None) -> None:
    """Put an ``nn.Linear`` in the place of every quantized layer of ``model``, adapted or not.

    Args:
        adapter_names: adapters to merge; the active ones by default. What is merged already stays merged.
    """
    dtype, made = float_dtype(model), dict[int, nn.Linear]()
    for key, module in list(model.named_modules(remove_duplicate=False)):
        library = None if isinstance(module, OFTLayer) else library_of(module)
        inside = key.rpartition(".")[2] == "base_layer"  # replaced with the adapter around it
        if inside or not (isinstance(module, QuantizedLinear) or library):
            continue
        if id(module) not in made:
            if isinstance(module, QuantizedLinear):
                names = [name for name in adapter_names or module.active_adapters if module.rotations(name)]
                made[id(module)] = module.dense(names, dtype)
            elif library:
                made[id(module)] = dense(module, library, dtype)
        parent, _, name = key.rpartition(".")
        setattr(model.get_submodule(parent), name, made[id(module)])
    forget_quantization(model)


def float_dtype(model: nn.Module) -> torch.dtype:
    """The dtype of most of the numbers that are not quantized, which is what the layers around compute in.

    Example:
        >>> float_dtype(nn.Linear(2, 2, dtype=torch.bfloat16))
        torch.bfloat16
    """
    counts: Counter[torch.dtype] = Counter()
    for module in model.modules():
        if not isinstance(module, OFTLayer) and library_of(module) is None:
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.dtype.is_floating_point and parameter.dtype.itemsize > 1 and "oft_" not in name:
                    counts[parameter.dtype] += parameter.numel()
    return counts.most_common(1)[0][0] if counts else torch.float32


def forget_quantization(model: nn.Module) -> None:
    """Take away what transformers and diffusers noted about quantization: the saved model loads as a plain one."""
    for owner in model.modules():
        config: Any = getattr(owner, "config", None)
        if isinstance(config, Mapping) and "quantization_config" in config:  # diffusers' frozen dictionary
            kept = {key: value for key, value in config.items() if key != "quantization_config"}
            owner._internal_dict = type(config)(kept)  # type: ignore[assignment, call-arg]
        elif hasattr(config, "quantization_config"):
            del config.quantization_config
        if hasattr(config, "_is_quantized"):
            del config._is_quantized
        for name in ("hf_quantizer", "quantization_method", "quantization_config"):
            owner.__dict__.pop(name, None)
        for name in ("is_quantized", "is_loaded_in_4bit", "is_loaded_in_8bit", "hqq_quantized"):
            if name in owner.__dict__:
                setattr(owner, name, False)
