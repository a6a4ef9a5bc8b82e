"""``oft_blocks`` as LyCORIS and sd-scripts store them: dense matrices on the output side and a ball for all of them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from orthotune.files.names import escaped
from orthotune.formats.adapter_file import AdapterFile
from orthotune.formats.adapter_state import AdapterState, LayerState
from orthotune.formats.codecs.dense_blocks import (
    check_butterfly,
    one_number,
    refuse_foreign,
    scale_of_rows,
    square_blocks,
)
from orthotune.rotation.butterfly import Butterfly
from orthotune.rotation.frozen import FrozenMap
from orthotune.rotation.on_weight import Blend
from orthotune.rotation.packing import block_size_of, pack, unpack
from orthotune.rotation.spec import RotationSpec

SUFFIXES = "oft_blocks|alpha|rescale"


def clipped(K: Tensor, limit: float, tool: Literal["lycoris", "kohya"]) -> Tensor:
    """The skew blocks of a layer with their common Frobenius norm brought down to ``limit``.

    LyCORIS clips nothing at a limit of 0; sd-scripts then clips everything to almost nothing.
    Source: LyCORIS ``modules/diag_oft.py``, sd-scripts ``networks/oft.py``.

    Example:
        >>> clipped(torch.tensor([[0.0, 3.0], [-3.0, 0.0]]), 0.0, "lycoris").norm().item() > 4
        True
    """
    norm = torch.linalg.vector_norm(K)
    if tool == "kohya":
        return K * ((norm.clamp(max=limit) + 1e-8) / (norm + 1e-8))
    return K * (limit / (norm + 1e-8)) if limit > 0 and norm > limit else K


def read_blocks(
    file: AdapterFile, format: str, tool: Literal["lycoris", "kohya"], stages: Blend = "stages"
) -> AdapterState:
    """The adapter in a file whose ``oft_blocks`` have three dimensions, or four for butterflies.

    Raises:
        AdapterFileError: a tensor has a wrong shape, or belongs to another method.
    """
    found = {stem: names for stem, names in file.layers(SUFFIXES).items() if "oft_blocks" in names}
    rest = refuse_foreign(file, found)
    layers: dict[str, LayerState] = {}
    transforms: dict[str, FrozenMap] = {}
    for stem, names in found.items():
        tensors = file.read(names.values())
        key, scale, alpha = names["oft_blocks"], names.get("rescale"), names.get("alpha")
        blocks = square_blocks(file, key, tensors[key], 4 if tensors[key].dim() == 4 else 3)
        rows = blocks.shape[-3] * blocks.shape[-1]
        K = blocks - blocks.mT
        K = K if alpha is None else clipped(K, one_number(file, alpha, tensors[alpha]) * rows, tool)
        magnitude = None if scale is None else scale_of_rows(file, scale, tensors[scale], rows)
        dims = None if scale is None or tensors[scale].dim() < 2 else tensors[scale].dim()
        if K.dim() == 3:  # M = C+(K)ᵀ = C-(K)
            layers[stem] = LayerState({"": pack(K)}, RotationSpec(side="out"), magnitude, blend="rotation", dims=dims)
        else:  # not transposed: C+(K) = C-(-K)
            check_butterfly(file, key, blocks, rows)
            transforms[stem] = Butterfly(-K, "lycoris", "out", magnitude, stages, dims=dims)
    return AdapterState(
        layers, {}, file.read(rest), file.path, format, transforms, {stem: stem for stem in found},
        file.metadata, unused_warning(rest),
    )  # fmt: skip


def unused_warning(rest: list[str]) -> tuple[str, ...]:
    """What is said of tensors beside the rotations."""
    return (f"{len(rest)} tensors are no rotations and are not applied: {escaped(rest)}",) if rest else ()


def dense(vector: Tensor, factor: float = 0.5) -> Tensor:
    """Packed skew blocks as dense matrices ``A`` with ``A - Aᵀ`` equal to the blocks.

    Shapes: ``(rows, b (b - 1) / 2)`` -> ``(rows, b, b)``, float32 or float64.

    Example:
        >>> dense(torch.tensor([[1.0]]))
        tensor([[[ 0.0000,  0.5000],
                 [-0.5000,  0.0000]]])
    """
    size = block_size_of(vector.shape[-1])
    return (unpack(vector, size) * factor).contiguous()
