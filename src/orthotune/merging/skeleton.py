"""The base model without its weights, and an adapter on it: what turns, how, and under which names."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from orthotune.errors import OrthotuneError
from orthotune.layers.base import OFTLayer
from orthotune.merging.origin import Origin, origins

ADAPTER = "default"


@dataclass
class Skeleton:
    """A model on the meta device with one adapter in memory.

    Args:
        layers: parameter name -> the layer that turns it and the parameter's name below that layer's base.
        replaced: parameter name -> the numbers that the adapter holds for it whole (``modules_to_save``, biases).
        shapes: shape of every parameter.
        origins: parameter name -> tensors of the checkpoint.
        tied: parameters that share the numbers of another one, and which.
        embeddings: names of the input and the output embedding, where there are any.
    """

    layers: dict[str, tuple[OFTLayer, str]]
    replaced: dict[str, Tensor]
    shapes: dict[str, tuple[int, ...]]
    origins: dict[str, Origin]
    tied: dict[str, str]
    embeddings: set[str]

    @property
    def changed(self) -> set[str]:
        """Names of the parameters that a merge changes."""
        return {*self.layers, *self.replaced}


def build_skeleton(base: Path, adapter: Path, names: list[str]) -> Skeleton:
    """The model that ``base/config.json`` describes, with the adapter of a folder, for a checkpoint with ``names``.

    Raises:
        OrthotuneError: the config describes no model that the installed transformers knows.
        AdapterFileError, UnsupportedLayerError: the adapter does not fit this model.
    """
    from orthotune.tuner.register import register

    model = _empty_model(base)
    tied = dict(getattr(model, "all_tied_weights_keys", None) or {})
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    places = {name: origin for name, origin in origins(model, names).items() if name in shapes}
    ends = {id(module.weight) for module in _ends(model)}
    embeddings = {name for name, p in model.named_parameters(remove_duplicate=False) if id(p) in ends}

    from peft import PeftModel

    register()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings=True.*")  # untied where that matters
        tuned = PeftModel.from_pretrained(
            model, str(adapter), adapter_name=ADAPTER, low_cpu_mem_usage=True, torch_device="cpu"
        ).eval()
    layers: dict[str, tuple[OFTLayer, str]] = {}
    root = tuned.base_model.model
    for key, module in root.named_modules():
        if isinstance(module, OFTLayer) and module.rotations(ADAPTER):
            module.check_mergeable([ADAPTER])
            for parameter in module.base_parameters():
                layers[f"{_bare(key)}.{parameter}"] = (module, parameter)
    replaced = {
        _bare(name): parameter.detach()
        for name, parameter in root.named_parameters()
        if parameter.device.type != "meta" and ".oft_" not in name
    }
    return Skeleton(layers, replaced, shapes, places, tied, embeddings)


def _empty_model(base: Path) -> Any:
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(base)
        named = (config.architectures or [None])[0]
        kind = getattr(transformers, named or "", None)
        with torch.device("meta"):
            return kind(config) if kind else transformers.AutoModelForCausalLM.from_config(config)
    except (ValueError, OSError) as error:
        raise OrthotuneError(
            f"the base model {base}", got=str(error).split("\n")[0], needed="a model that transformers knows",
            do="Merge without --stream",
        ) from error  # fmt: skip


def _ends(model: Any) -> list[Any]:
    found = []
    for ask in (model.get_input_embeddings, model.get_output_embeddings):
        try:
            found.append(ask())
        except (NotImplementedError, AttributeError):
            continue  # a model without words
    return [module for module in found if getattr(module, "weight", None) is not None]


def _bare(name: str) -> str:
    for inside in (".base_layer", f".modules_to_save.{ADAPTER}"):
        name = name.replace(inside, "")
    return name
