"""The tensor ``oft_R.weight`` in a file without a config, as OneTrainer and sd-scripts ``oft_v2`` write it."""

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
    """Refuse a tensor that is not a stack of packed upper triangles.

    Args:
        file: of the tensor, for messages.
        name: of the tensor.
        tensor: the stored tensor.

    Raises:
        AdapterFileError: the shape or the dtype is wrong.
    """
    try:
        packed = tensor.dim() == 2 and tensor.numel() > 0 and block_size_of(tensor.shape[-1]) > 1
    except OrthotuneError:
        packed = False
    if not packed or not tensor.is_floating_point():
        raise AdapterFileError(
            f"Tensor '{name}' of {file.path} is not a packed rotation",
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
    """Read an adapter from a file without a config.

    Args:
        file: opened, its tensors not read yet.
        format: id of the format.
        options: facts that the file does not record.
        recorded: returns the COFT radius in the header; faulty settings in the header count as None.
        scaled: whether the tool uses the marker ``scaled_oft``.
        blend: how the tool interpolates at strengths other than 1.

    Raises:
        AdapterFileError: a tensor has a wrong shape or belongs to another method, or the file is from PEFT and needs
            its config.
    """
    found = {stem: names for stem, names in file.layers(PACKED).items() if "oft_R.weight" in names}
    if all(stem.startswith(PREFIX) for stem in found):
        raise AdapterFileError(
            f"{file.path} is from PEFT, without its config", needed="adapter_config.json beside it",
            do="Name the folder that holds both files",
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
            needed = "one row, because the file says that blocks are shared"
            refuse_shape(file.path, names["oft_R.weight"], vector.shape, needed)
        spec = RotationSpec(
            map=SERIES[options.series or "current"],
            # A single row is a shared block; if it fills the layer, sharing makes no difference.
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
    """The packed triangles of all layers, under the names of a file without a config.

    Args:
        state: layers with one rotation.
        names: layer -> prefix of its tensor names.
    """
    return {f"{names[name]}.oft_R.weight": layer.vector() for name, layer in state.layers.items()}


def settings_in(file: AdapterFile, key: str) -> dict[str, Any]:
    """The settings that a tool stores as a JSON object in the header; empty if there are none.

    Args:
        file: with the header.
        key: of the header.

    Raises:
        ValueError: the text is not a JSON object.
    """
    return json_object(file.metadata.get(key, "{}"))


def _config(file: AdapterFile) -> dict[str, Any]:
    """The settings of OneTrainer, if the user chose to save them."""
    try:
        return settings_in(file, "ot_config")
    except ValueError:
        return {}


def _eps(file: AdapterFile, options: ReadOptions, recorded: Callable[[AdapterFile], float | None]) -> float | None:
    """The COFT radius from the options, or else from the header."""
    if options.coft is not None:
        if options.coft and options.eps is None:
            raise AdapterFileError(f"COFT for {file.path}", needed="its eps", do="Pass eps")
        return options.eps if options.coft else None
    try:
        return recorded(file)
    except (ValueError, TypeError, KeyError):
        return None
