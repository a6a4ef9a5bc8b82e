"""The tensors ``oft_blocks.0``, ``.1``, ...: one stack of blocks for each row range of a fused projection."""

from __future__ import annotations

import torch
from torch import Tensor

from orthotune.errors import AdapterFileError
from orthotune.formats.adapter_file import AdapterFile
from orthotune.formats.adapter_state import AdapterState, LayerState
from orthotune.formats.codecs.dense_blocks import one_number, refuse_foreign, square_blocks
from orthotune.formats.codecs.oft_blocks import clipped, unused_warning
from orthotune.rotation.frozen import FrozenMap, SplitRows
from orthotune.rotation.packing import block_size_of, pack
from orthotune.rotation.spec import RotationSpec
from orthotune.rotation.transform import BlockTransform


def read_split(file: AdapterFile, format: str) -> AdapterState:
    """Read an adapter: parts with equal block sizes become one rotation, other layers a weight transform.

    Args:
        file: opened, its tensors not read yet.
        format: id of the format.

    Raises:
        AdapterFileError: a part is missing, has a wrong shape, or belongs to another method.
    """
    found = {s: n for s, n in file.layers(r"oft_blocks\.\d+|alpha").items() if set(n) != {"alpha"}}
    rest = refuse_foreign(file, found)
    layers: dict[str, LayerState] = {}
    transforms: dict[str, FrozenMap] = {}
    for stem, names in found.items():
        tensors = file.read(names.values())
        alpha = one_number(file, names["alpha"], tensors[names["alpha"]]) if "alpha" in names else None
        parts = sorted((int(s.rpartition(".")[2]), name) for s, name in names.items() if s != "alpha")
        numbers = [number for number, _ in parts]
        if numbers != list(range(len(numbers))):
            raise AdapterFileError(
                f"Layer '{stem}' of {file.path}", got=f"parts {numbers}", needed="all numbers from 0 on"
            )
        vectors = [_vector(file, name, tensors, alpha) for _, name in parts]
        if len({vector.shape[1] for vector in vectors}) == 1:
            layers[stem] = LayerState({"": torch.cat(vectors)}, RotationSpec(side="out"), blend="rotation")
        else:
            specs = [RotationSpec(block_size_of(vector.shape[1]), "out") for vector in vectors]
            sizes = tuple(spec.block_size * v.shape[0] for spec, v in zip(specs, vectors, strict=True))
            each = zip(specs, vectors, strict=True)
            transforms[stem] = SplitRows(sizes, tuple(BlockTransform(*one, blend="rotation") for one in each))
    return AdapterState(
        layers, {}, file.read(rest), file.path, format, transforms, {stem: stem for stem in found},
        file.metadata, unused_warning(rest),
    )  # fmt: skip


def _vector(file: AdapterFile, name: str, tensors: dict[str, Tensor], alpha: float | None) -> Tensor:
    blocks = square_blocks(file, name, tensors[name], 3)
    K = blocks - blocks.mT
    return pack(K if alpha is None else clipped(K, alpha * blocks.shape[0] * blocks.shape[1], "kohya"))
