"""``boft_R`` and ``boft_s`` as PEFT and sd-scripts load them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from orthotune.errors import UnsupportedLayerError
from orthotune.formats.adapter_state import AdapterState, LayerState
from orthotune.formats.codecs.oft_blocks import dense
from orthotune.rotation.butterfly import Butterfly


def boft_tensors(state: AdapterState, names: Mapping[str, str], conv_row: bool) -> dict[str, Tensor]:
    """Blocks and scales of exact rotations, and of butterflies, on the input side.

    Args:
        names: layer -> what stands before the suffix.
        conv_row: whether the scale of a convolution is a row, as PEFT has it; sd-scripts has columns everywhere.

    Raises:
        UnsupportedLayerError: a layer is of another kind or has no scale.
    """
    tensors = {}
    for name, layer in {**state.layers, **state.transforms}.items():
        if isinstance(layer, LayerState):
            blocks = dense(layer.vector(), 1.0).unsqueeze(0)
        elif isinstance(layer, Butterfly):
            blocks = layer.skew
        else:
            raise UnsupportedLayerError(f"layer '{name}'", got=type(layer).__name__, needed="a rotation or a butterfly")
        if layer.magnitude is None:
            raise UnsupportedLayerError(f"layer '{name}'", got="no scale of its rows", needed="one number per row")
        row = conv_row and (layer.dims or 2) > 2
        tensors[f"{names[name]}.boft_R"] = blocks.float().contiguous()
        tensors[f"{names[name]}.boft_s"] = layer.magnitude.float().view((1, -1) if row else (-1, 1))
    return tensors


def one_size(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """The fields of PEFT's config that give every layer its blocks.

    Raises:
        UnsupportedLayerError: no block size and no number of blocks is common to all layers, or the factors differ.
    """
    shapes = {name: tensor.shape for name, tensor in tensors.items() if name.endswith(".boft_R")}
    stages, counts, sizes = ({shape[i] for shape in shapes.values()} for i in range(3))
    if len(stages) > 1 or (len(counts) > 1 and len(sizes) > 1):
        raise UnsupportedLayerError(
            "one config of PEFT's for all layers",
            got=f"blocks of {sorted(sizes)}, {sorted(counts)} of them, in {sorted(stages)} factors",
            needed="one block size, or one number of blocks, and one number of factors",
            do="Write it for sd-scripts (--to kohya-boft), which takes each layer's own",
        )
    whole = len(sizes) == 1
    return {
        "boft_block_size": min(sizes) if whole else 0,
        "boft_block_num": 0 if whole else min(counts),
        "boft_n_butterfly_factor": min(stages),
    }
