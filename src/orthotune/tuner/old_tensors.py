"""The tensors of adapter folders of PEFT before 0.16, as the parameters of today's layers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from orthotune.errors import AdapterFileError
from orthotune.formats.adapter_file import AdapterFile
from orthotune.formats.read_options import ReadOptions
from orthotune.formats.roster import format_of
from orthotune.layers.base import OFTLayer
from orthotune.layers.settings import LayerSettings


def translated_state(
    model: nn.Module, fields: Mapping[str, Any], adapter_name: str, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The state dict that today's layers load, of the same meaning; without the layers that no rotation can express.

    Those (blocks of PEFT before 0.14 whose number does not divide the outputs, and which it cut) get a frozen weight
    transform in their place.

    Args:
        model: already has the layers of the translated config.
        fields: the config as it was saved.
        adapter_name: whose layers.
        tensors: as they were saved.

    Raises:
        AdapterFileError: a tensor has a shape that no version wrote, or does not fit its layer.
    """
    file = AdapterFile(
        Path("the adapter"), {name: tuple(t.shape) for name, t in tensors.items()},
        lambda names: {name: tensors[name] for name in names}, fields,
    )  # fmt: skip
    state = format_of(file).read(file, ReadOptions())
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, OFTLayer) and adapter_name in module.oft_settings
    }
    new = {f"base_model.model.{name}": tensor for name, tensor in state.other.items()}
    for name, held in state.layers.items():
        layer = layers.get(name)
        if layer is not None and held.ragged:
            weight = layer.get_base_layer().weight
            if not _runs(held, weight.shape[1 if isinstance(layer.get_base_layer(), Conv1D) else 0], name):
                layer.update_layer(adapter_name, LayerSettings(name, held.spec, frozen=held))
                continue
        stem = f"base_model.model.{name}"
        new[f"{stem}.oft_R.weight"] = held.rotations[""]
        if held.magnitude is not None:
            new[f"{stem}.oft_magnitude"] = held.magnitude
    return new


def _runs(held: Any, features: int, name: str) -> bool:
    try:
        return bool(held.runs_on(features))
    except AdapterFileError as error:
        raise AdapterFileError(f"layer '{name}'", got=error.got, needed=error.needed, do=error.do) from error
