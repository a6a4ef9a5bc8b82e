"""``boft_R`` and ``boft_s``, as PEFT and sd-scripts store them."""

from __future__ import annotations

from typing import Any

from orthotune.errors import AdapterFileError
from orthotune.files.names import escaped
from orthotune.formats.adapter_file import AdapterFile
from orthotune.formats.adapter_state import AdapterState, LayerState
from orthotune.formats.codecs.dense_blocks import (
    check_butterfly,
    refuse_foreign,
    scale_of_rows,
    skew_vector,
    square_blocks,
)
from orthotune.formats.codecs.oft_blocks import unused_warning
from orthotune.formats.peft.names import bare
from orthotune.rotation.butterfly import Butterfly
from orthotune.rotation.frozen import FrozenMap
from orthotune.rotation.on_weight import Blend

SUFFIXES = "boft_R|boft_s|boft_P"


def read_butterflies(
    file: AdapterFile, format: str, blend: Blend, scrambled: bool, warnings: tuple[str, ...] = ()
) -> AdapterState:
    """The adapter: one factor is a rotation, several are a butterfly, ``scrambled`` convolutions a transform.

    Raises:
        AdapterFileError: a tensor is missing or has a wrong shape.
    """
    found = file.layers(SUFFIXES)
    layers: dict[str, LayerState] = {}
    transforms: dict[str, FrozenMap] = {}
    prefixes = {}
    for stem, names in found.items():
        if not {"boft_R", "boft_s"} <= set(names):
            raise AdapterFileError(
                f"Layer '{escaped([stem])}' of {file.path}", got=escaped(names), needed="boft_R and boft_s"
            )
        tensors = file.read([names["boft_R"], names["boft_s"]])  # boft_P only repeats what the sizes say
        blocks = square_blocks(file, names["boft_R"], tensors[names["boft_R"]], 4)
        check_butterfly(file, names["boft_R"], blocks, blocks.shape[1] * blocks.shape[2])
        scale = scale_of_rows(file, names["boft_s"], tensors[names["boft_s"]], None)
        name = bare(stem)
        prefixes[name] = stem
        dims = 4 if is_conv(file.shapes[names["boft_s"]]) else 2 if file.config is not None else None
        conv = scrambled and dims == 4
        if blocks.shape[0] == 1 and not conv:
            layers[name] = LayerState({"": skew_vector(blocks[0], 0.5)}, magnitude=scale, blend=blend, dims=dims)
        else:
            transforms[name] = Butterfly((blocks - blocks.mT) / 2, "peft", "in", scale, blend, conv, dims)
    rest = refuse_foreign(file, found)
    other = {bare(name): tensor for name, tensor in file.read(rest).items()}
    config: dict[str, Any] = dict(file.config or {})
    told_of = unused_warning(rest) if file.config is None else ()
    return AdapterState(
        layers, config, other, file.path, format, transforms, prefixes, file.metadata, warnings + told_of
    )


def is_conv(shape: tuple[int, ...]) -> bool:
    """Whether a scale of this shape is PEFT's for a convolution: a row, where a linear layer has a column.

    Example:
        >>> is_conv((1, 12)), is_conv((12, 1))
        (True, False)
    """
    return len(shape) == 2 and shape[0] == 1 and shape[1] > 1
