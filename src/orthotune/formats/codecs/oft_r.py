"""``oft_R.weight`` without a config, as OneTrainer and sd-scripts ``oft_v2`` write it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from orthotune.errors import AdapterFileError, OrthotuneError
from orthotune.files.json_file import json_object
from orthotune.formats.adapter_file import AdapterFile, refuse_shape
from orthotune.formats.adapter_state import AdapterState, LayerState
from orthotune.formats.codecs.dense_blocks import refuse_foreign
from orthotune.formats.codecs.oft_blocks import unused_warning
from orthotune.formats.codecs.suffixes import PACKED
from orthotune.formats.peft.layer_settings import SERIES
from orthotune.formats.peft.names import PREFIX
from orthotune.formats.read_options import ReadOptions
from orthotune.rotation.on_weight import Blend
from orthotune.rotation.packing import block_size_of
from orthotune.rotation.spec import RotationSpec


def check_packed(file: AdapterFile, name: str, tensor: Tensor) -> None:
    """Refuse what is no stack of packed triangles.

    Raises:
        AdapterFileError: the shape is another, or the numbers are whole.
    """
    try:
        packed = tensor.dim() == 2 and tensor.numel() > 0 and block_size_of(tensor.shape[-1]) > 1
    except OrthotuneError:
        packed = False
    if not packed or not tensor.is_floating_point():
        raise AdapterFileError(
            f"Tensor '{name}' of {file.path} is no packed rotation",
            got=f"shape {list(tensor.shape)}, {tensor.dtype}",
            needed="[blocks, b(b-1)/2] for some block size b, floating-point numbers",
        )


def read_packed(
    file: AdapterFile,
    format: str,
    options: ReadOptions,
    recorded: Callable[[AdapterFile], float | None],
    *,
    scaled: bool,
    blend: Blend,
) -> AdapterState:
    """The adapter in a file that stands alone.

    Args:
        file: of which no tensor was read.
        format: id of the format.
        options: what the file does not say about itself.
        recorded: COFT's radius as the header has it; faulty settings there count as none.
        scaled: whether the tool heeds the marker ``scaled_oft``.
        blend: what the tool does at a strength other than 1.

    Raises:
        AdapterFileError: a tensor has a wrong shape or belongs to another method, or PEFT wrote the file, without whose
            config its meaning is open.
    """
    found = {stem: names for stem, names in file.layers(PACKED).items() if "oft_R.weight" in names}
    if all(stem.startswith(PREFIX) for stem in found):
        raise AdapterFileError(
            f"{file.path} is PEFT's, without its config", needed="adapter_config.json beside it",
            do="Name the folder that holds both",
        )  # fmt: skip
    rest = refuse_foreign(file, found)
    config = _config(file)
    share = config.get("oft_block_share")
    eps = _eps(file, options, recorded)
    layers = {}
    for stem, names in found.items():
        vector = file.read([names["oft_R.weight"]])[names["oft_R.weight"]]
        check_packed(file, names["oft_R.weight"], vector)
        if share is True and vector.shape[0] != 1:
            refuse_shape(file.path, names["oft_R.weight"], vector.shape, "one row, for the file says blocks are shared")
        spec = RotationSpec(
            map=SERIES[options.series or "current"],
            # A single row is one block that stands for all; where it fills the layer, both are the same.
            shared=vector.shape[0] == 1,
            eps=eps,
            scaled=scaled and "oft_R.scaled_oft" in names,
        )
        layers[stem] = LayerState({"": vector}, spec, conv_reversed=True, blend=blend)
    return AdapterState(
        layers, config, file.read(rest), file.path, format, prefixes={stem: stem for stem in layers},
        metadata=file.metadata, warnings=unused_warning(rest),
    )  # fmt: skip


def packed_tensors(state: AdapterState, names: Mapping[str, str]) -> dict[str, Tensor]:
    """The triangles of every layer under the names of a file that stands alone.

    Args:
        state: layers with one rotation.
        names: layer -> what stands before the suffix.
    """
    return {f"{names[name]}.oft_R.weight": layer.vector() for name, layer in state.layers.items()}


def settings_in(file: AdapterFile, key: str) -> dict[str, Any]:
    """The settings that a tool keeps as a JSON object in the header; empty if there are none.

    Args:
        file: with the header.
        key: under which it keeps them.

    Raises:
        ValueError: the text is no JSON object.
    """
    return json_object(file.metadata.get(key, "{}"))


def _config(file: AdapterFile) -> dict[str, Any]:
    """OneTrainer's own settings, if its user had them saved."""
    try:
        return settings_in(file, "ot_config")
    except ValueError:
        return {}


def _eps(file: AdapterFile, options: ReadOptions, recorded: Callable[[AdapterFile], float | None]) -> float | None:
    """COFT's radius, as the options or the settings in the header say."""
    if options.coft is not None:
        if options.coft and options.eps is None:
            raise AdapterFileError(f"COFT for {file.path}", needed="its eps", do="Pass eps")
        return options.eps if options.coft else None
    try:
        return recorded(file)
    except (ValueError, TypeError, KeyError):
        return None
