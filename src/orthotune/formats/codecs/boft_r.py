"""The tensors ``boft_R`` and ``boft_s`` of PEFT and sd-scripts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from orthotune.errors import AdapterFileError, UnsupportedLayerError
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
from orthotune.formats.codecs.oft_blocks import dense, unused_warning
from orthotune.formats.codecs.suffixes import BUTTERFLY
from orthotune.formats.peft.names import bare
from orthotune.rotation.butterfly import Butterfly
from orthotune.rotation.frozen import FrozenMap
from orthotune.rotation.on_weight import Blend
from orthotune.rotation.packing import unpack
from orthotune.rotation.stages import Stages, stages_of


def read_butterflies(
    file: AdapterFile, format: str, blend: Blend, legacy_conv: bool, warnings: tuple[str, ...] = ()
) -> AdapterState:
    """Read an adapter: a layer with one factor is a rotation, a layer with several a butterfly.

    Args:
        file: opened, its tensors not read yet.
        format: id of the format.
        blend: how the tool interpolates at strengths other than 1.
        legacy_conv: convolutions have the layout of PEFT before 0.14, and are weight transforms.
        warnings: further warnings of the state.

    Raises:
        AdapterFileError: a tensor is missing or has a wrong shape.
    """
    found = file.layers(BUTTERFLY)
    layers: dict[str, LayerState] = {}
    transforms: dict[str, FrozenMap] = {}
    prefixes = {}
    for stem, names in found.items():
        if not {"boft_R", "boft_s"} <= set(names):
            raise AdapterFileError(
                f"Layer '{escaped([stem])}' of {file.path}", got=escaped(names), needed="boft_R and boft_s"
            )
        tensors = file.read([names["boft_R"], names["boft_s"]])  # boft_P follows from the sizes
        blocks = square_blocks(file, names["boft_R"], tensors[names["boft_R"]], 4)
        check_butterfly(file, names["boft_R"], blocks, blocks.shape[1] * blocks.shape[2])
        scale = scale_of_rows(file, names["boft_s"], tensors[names["boft_s"]], None)
        name = bare(stem)
        prefixes[name] = stem
        dims = 4 if is_conv(file.shapes[names["boft_s"]]) else 2 if file.config is not None else None
        conv = legacy_conv and dims == 4
        if blocks.shape[0] == 1 and not conv:
            layers[name] = LayerState({"": skew_vector(blocks[0], 0.5)}, magnitude=scale, blend=blend, dims=dims)
        else:
            held = Butterfly((blocks - blocks.mT) / 2, "peft", "in", scale, blend, conv, dims)
            # A strength of sd-scripts blends the scales linearly, too, which no trained layer does.
            transforms[name] = held if conv or blend != "none" else stages_of(held)
    rest = refuse_foreign(file, found)
    other = {bare(name): tensor for name, tensor in file.read(rest).items()}
    config: dict[str, Any] = dict(file.config or {})
    unused = unused_warning(rest) if file.config is None else ()
    return AdapterState(
        layers, config, other, file.path, format, transforms, prefixes, file.metadata, warnings + unused
    )


def is_conv(shape: tuple[int, ...]) -> bool:
    """Whether a scale of this shape belongs to a convolution: PEFT stores a row there, and a column for a linear layer.

    Example:
        >>> is_conv((1, 12)), is_conv((12, 1))
        (True, False)
    """
    return len(shape) == 2 and shape[0] == 1 and shape[1] > 1


def boft_tensors(state: AdapterState, names: Mapping[str, str], conv_row: bool) -> dict[str, Tensor]:
    """The tensors of exact rotations and butterflies on the input side.

    Args:
        state: the adapter.
        names: layer -> prefix of its tensor names.
        conv_row: write the scale of a convolution as a row, like PEFT; sd-scripts has columns for all layers.

    Raises:
        UnsupportedLayerError: a layer is of another kind or has no scale.
    """
    tensors = {}
    for name, layer in {**state.layers, **state.transforms}.items():
        if isinstance(layer, LayerState):
            blocks = dense(layer.vector(), 1.0).unsqueeze(0)
        elif isinstance(layer, Butterfly):
            blocks = layer.skew
        elif isinstance(layer, Stages):
            blocks = unpack(layer.numbers, layer.spec.block_size).unflatten(0, (layer.spec.factors, -1))
        else:
            raise UnsupportedLayerError(f"layer '{name}'", got=type(layer).__name__, needed="a rotation or a butterfly")
        if layer.magnitude is None:
            raise UnsupportedLayerError(f"layer '{name}'", got="no scale of its rows", needed="one number per row")
        row = conv_row and (layer.dims or 2) > 2
        tensors[f"{names[name]}.boft_R"] = blocks.float().contiguous()
        tensors[f"{names[name]}.boft_s"] = layer.magnitude.float().view((1, -1) if row else (-1, 1))
    return tensors


def one_size(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The fields of a PEFT config that describe the blocks of all layers.

    Raises:
        UnsupportedLayerError: the layers have neither a common block size nor a common number of blocks, or the number
            of factors differs.
    """
    shapes = {name: tensor.shape for name, tensor in tensors.items() if name.endswith(".boft_R")}
    stages, counts, sizes = ({shape[i] for shape in shapes.values()} for i in range(3))
    if len(stages) > 1 or (len(counts) > 1 and len(sizes) > 1):
        raise UnsupportedLayerError(
            "one PEFT config for all layers",
            got=f"blocks of {sorted(sizes)}, {sorted(counts)} of them, in {sorted(stages)} factors",
            needed="one block size, or one number of blocks, and one number of factors",
            do="Write it for sd-scripts (--to kohya-boft), which stores the sizes per layer",
        )
    same_size = len(sizes) == 1
    return {
        "boft_block_size": min(sizes) if same_size else 0,
        "boft_block_num": 0 if same_size else min(counts),
        "boft_n_butterfly_factor": min(stages),
    }
