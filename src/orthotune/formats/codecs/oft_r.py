"""``oft_R.weight`` without a config, as OneTrainer and sd-scripts ``oft_v2`` write it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from orthotune.errors import AdapterFileError, OrthotuneError
from orthotune.files.json_file import json_object
from orthotune.formats.adapter_file import AdapterFile, refuse_shape
from orthotune.formats.adapter_state import AdapterState, LayerState
from orthotune.formats.codecs.dense_blocks import refuse_foreign
from orthotune.formats.codecs.oft_blocks import unused_warning
from orthotune.formats.peft.layer_settings import SERIES
from orthotune.formats.read_options import ReadOptions
from orthotune.rotation.packing import block_size_of
from orthotune.rotation.spec import RotationSpec

SUFFIXES = r"oft_R\.weight|oft_R\.scaled_oft"
PEFT_PREFIX = "base_model.model."


def stands_alone(file: AdapterFile) -> bool:
    """Whether the file holds packed triangles and has no config."""
    return file.config is None and file.has(SUFFIXES)


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


def read_packed(file: AdapterFile, format: str, options: ReadOptions) -> AdapterState:
    """The adapter in a file that stands alone.

    Raises:
        AdapterFileError: a tensor has a wrong shape or belongs to another method, or PEFT wrote the file, without whose
            config its meaning is open.
    """
    found = {stem: names for stem, names in file.layers(SUFFIXES).items() if "oft_R.weight" in names}
    if all(stem.startswith(PEFT_PREFIX) for stem in found):
        raise AdapterFileError(
            f"{file.path} is PEFT's, without its config", needed="adapter_config.json beside it",
            do="Name the folder that holds both",
        )  # fmt: skip
    rest = refuse_foreign(file, found)
    share = _config(file).get("oft_block_share")
    eps = _eps(file, format, options)
    layers = {}
    for stem, names in found.items():
        vector = file.read([names["oft_R.weight"]])[names["oft_R.weight"]]
        check_packed(file, names["oft_R.weight"], vector)
        if share is True and vector.shape[0] != 1:
            refuse_shape(file.path, names["oft_R.weight"], vector.shape, "one row, for the file says blocks are shared")
        state = LayerState(
            {"": vector},
            RotationSpec(
                map=SERIES[options.series or "current"],
                # A single row is one block that stands for all; where it fills the layer, both are the same.
                shared=vector.shape[0] == 1,
                eps=eps,
                scaled="oft_R.scaled_oft" in names and format == "onetrainer",  # sd-scripts ignores the marker
            ),
            conv_reversed=True,
            blend="linear" if format == "kohya-oft-v2" else "none",
        )
        layers[stem] = state if format == "onetrainer" else state.plain()  # sd-scripts' ball is for convolutions, too
    return AdapterState(
        layers, _config(file), file.read(rest), file.path, format, prefixes={stem: stem for stem in layers},
        metadata=file.metadata, warnings=unused_warning(rest),
    )  # fmt: skip


def _config(file: AdapterFile) -> dict[str, Any]:
    """OneTrainer's own settings, if its user had them saved."""
    try:
        return json_object(file.metadata.get("ot_config", "{}"))
    except ValueError:
        return {}


def _eps(file: AdapterFile, format: str, options: ReadOptions) -> float | None:
    """COFT's radius, as the options or the settings in the header say."""
    if options.coft is not None:
        if options.coft and options.eps is None:
            raise AdapterFileError(f"COFT for {file.path}", needed="its eps", do="Pass eps")
        return options.eps if options.coft else None
    try:
        if format == "onetrainer":
            found = _config(file)
            return float(found["coft_eps"]) if found.get("oft_coft") else None
        found = json_object(file.metadata.get("ss_network_args", "{}"))
        return float(found["coft_eps"]) if found.get("coft_eps") else None
    except (ValueError, TypeError, KeyError):
        return None
