"""The tensor ``oft_blocks`` of LyCORIS and sd-scripts: dense matrices on the output side, limited in norm per layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from orthotune.errors import UnsupportedLayerError
from orthotune.files.names import escaped
from orthotune.files.safetensors_file import write_tensors
from orthotune.formats.adapter_file import AdapterFile
from orthotune.formats.adapter_state import AdapterState, LayerState
from orthotune.formats.codecs.dense_blocks import (
    check_butterfly,
    one_number,
    refuse_foreign,
    scale_of_rows,
    square_blocks,
)
from orthotune.formats.codecs.written_header import header as new_header
from orthotune.formats.codecs.written_header import lycoris_hash
from orthotune.rotation.butterfly import Butterfly
from orthotune.rotation.frozen import FrozenMap
from orthotune.rotation.on_weight import Blend
from orthotune.rotation.packing import block_size_of, pack, unpack
from orthotune.rotation.spec import RotationSpec

SUFFIXES = "oft_blocks|alpha|rescale"
#: Layer, its blocks ``(n, b, b)``, whether it has a scale -> blocks in the layout that the tool loads correctly.
Arranged = Callable[[str, Tensor, bool], Tensor]
#: Metadata of the source, tensors by layer, tensors by name, alpha -> metadata of the written file.
Header = Callable[[Mapping[str, str], Mapping[str, Mapping[str, Tensor]], Mapping[str, Tensor], float], dict[str, str]]

#: So large that no tool clips. It must be the same for all layers, because sd-scripts reads a single value.
ALPHA = 1000.0


def clipped(K: Tensor, limit: float, tool: Literal["lycoris", "kohya"]) -> Tensor:
    """The skew blocks of a layer, scaled down so that their common Frobenius norm is at most ``limit``.

    LyCORIS does not clip at a limit of 0; sd-scripts then clips to almost zero.
    Args:
        K: skew blocks ``(n, b, b)``.
        limit: largest norm.
        tool: whose rule is used.

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
    """Read an adapter whose ``oft_blocks`` have three dimensions, or four for butterflies.

    Args:
        file: opened, its tensors not read yet.
        format: id of the format.
        tool: whose rule for ``alpha`` is used.
        stages: how the tool interpolates the stages of a butterfly.

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
    """The warning about tensors that belong to no rotation; empty without such tensors."""
    return (f"{len(rest)} tensors are no rotations and are not applied: {escaped(rest)}",) if rest else ()


def dense(vector: Tensor, factor: float = 0.5) -> Tensor:
    """Packed skew blocks as dense matrices ``A`` with ``A - Aᵀ`` equal to the blocks.

    Args:
        vector: ``(rows, b (b - 1) / 2)``, float32 or float64.
        factor: multiplies the skew blocks; 0.5 gives the ``A`` of the formula.

    Returns:
        ``(rows, b, b)`` in the dtype of the vector.

    Example:
        >>> dense(torch.tensor([[1.0]]))
        tensor([[[ 0.0000,  0.5000],
                 [-0.5000,  0.0000]]])
    """
    size = block_size_of(vector.shape[-1])
    return (unpack(vector, size) * factor).contiguous()


def write_blocks(state: AdapterState, out: Path, names: Mapping[str, str], arranged: Arranged, header: Header) -> Path:
    """Write one file from exact rotations and butterflies on the output side.

    Args:
        state: the layers.
        out: the file.
        names: layer -> prefix of its tensor names.
        arranged: brings the blocks of a rotation into the layout that the tool loads.
        header: returns the metadata of the file.

    Raises:
        UnsupportedLayerError: a layer is of another kind, or the tool cannot load its blocks.
        OutputError: the file cannot be written.
    """
    norms = [1.0]
    written: dict[str, dict[str, Tensor]] = {}
    for name, layer in state.layers.items():
        vector = layer.vector()
        norms.append(float(torch.linalg.vector_norm(vector)) * math.sqrt(2))
        blocks = arranged(name, dense(vector), layer.magnitude is not None)
        written[names[name]] = {"oft_blocks": blocks} | _rescale(layer.magnitude, layer.dims)
    for name, transform in state.transforms.items():
        if not isinstance(transform, Butterfly):
            raise UnsupportedLayerError(f"layer '{name}'", got=type(transform).__name__, needed="a rotation")
        norms.append(float(torch.linalg.vector_norm(transform.skew)))
        stages = {"oft_blocks": -transform.skew / 2}  # stages are C+(A - Aᵀ), the state's C-(skew)
        written[names[name]] = stages | _rescale(transform.magnitude, transform.dims)
    alpha = torch.tensor(max(ALPHA, 2 * max(norms)))
    tensors: dict[str, Tensor] = {}
    for stem, parts in written.items():
        tensors |= {f"{stem}.{suffix}": tensor.contiguous() for suffix, tensor in parts.items()}
        tensors[f"{stem}.alpha"] = alpha.clone()
    return write_tensors(out, tensors, header(state.metadata, written, tensors, float(alpha)))


def paired(blocks: Tensor) -> Tensor:
    """The same rotation in blocks of twice the size, each made of two neighbouring blocks.

    Shapes: ``(n, b, b)`` with an even ``n`` -> ``(n / 2, 2 b, 2 b)``.
    """
    return torch.stack([torch.block_diag(*pair) for pair in blocks.split(2)])


def as_butterfly(blocks: Tensor, stages: int) -> Tensor:
    """The same rotation as the first stage of a butterfly; the further stages are the identity.

    Args:
        blocks: ``(n, b, b)`` with an even ``b``.
        stages: number of stages.

    Returns:
        ``(stages, n, b, b)``.
    """
    size = blocks.shape[-1]
    index = torch.arange(size).view(2, size // 2).T.flatten()
    # A stage interleaves the two halves of a block, and its blocks are not transposed.
    first = -blocks[:, index][:, :, index]
    return torch.cat([first.unsqueeze(0), first.new_zeros(stages - 1, *first.shape)])


def _rescale(magnitude: Tensor | None, dims: int | None) -> dict[str, Tensor]:
    """The scale in a shape that broadcasts over a weight of ``dims`` dimensions."""
    return {} if magnitude is None else {"rescale": magnitude.float().view(-1, *[1] * ((dims or 2) - 1))}


def lycoris_header(
    source: Mapping[str, str], written: Mapping[str, Mapping[str, Tensor]], tensors: Mapping[str, Tensor], alpha: float
) -> dict[str, str]:
    """The metadata as LyCORIS 3.0 and later write it.

    Args:
        source: metadata of the file that was converted.
        written: name of a layer -> suffix -> tensor.
        tensors: all tensors of the file.
        alpha: the value for all layers.
    """
    shapes = [parts["oft_blocks"].shape for parts in written.values()]
    butterfly = any(len(shape) == 4 for shape in shapes)
    args = {"algo": "boft" if butterfly else "diag-oft", "constraint": str(alpha)}
    if any("rescale" in parts for parts in written.values()):
        args["rescaled"] = "True"
    found = new_header(source, "lycoris.kohya", max(shape[-1] for shape in shapes), args)
    return found | {"sshs_model_hash": lycoris_hash(tensors)}
