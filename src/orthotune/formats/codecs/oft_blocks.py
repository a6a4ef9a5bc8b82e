"""``oft_blocks`` as LyCORIS and sd-scripts store them: dense matrices on the output side and a ball for all of them."""

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
#: Layer, its blocks ``(n, b, b)``, whether a scale stands beside them -> blocks that the tool's loader takes right.
Arranged = Callable[[str, Tensor, bool], Tensor]
#: Metadata of the source, parts by name of the layer, tensors, alpha -> metadata of the file.
Header = Callable[[Mapping[str, str], Mapping[str, Mapping[str, Tensor]], Mapping[str, Tensor], float], dict[str, str]]

#: No tool clips at this radius, whatever it multiplies it by; it must be one for all layers, for sd-scripts reads one.
ALPHA = 1000.0


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


def write_blocks(state: AdapterState, out: Path, names: Mapping[str, str], arranged: Arranged, header: Header) -> Path:
    """One file for a tool, from layers that rotate exactly on the output side and butterflies of that side.

    Args:
        state: the layers.
        out: the file.
        names: layer -> what stands before the suffix.
        arranged: brings the blocks of a rotation into the order and number that the tool's loader takes.
        header: the metadata of the file.

    Raises:
        UnsupportedLayerError: a layer is of another kind, or the tool's loader would not take its blocks.
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
    """Blocks of twice the size that turn as before, each from two that stand side by side.

    Shapes: ``(n, b, b)`` with an even ``n`` -> ``(n / 2, 2 b, 2 b)``.
    """
    return torch.stack([torch.block_diag(*pair) for pair in blocks.split(2)])


def as_butterfly(blocks: Tensor, stages: int) -> Tensor:
    """The first stage of a butterfly that turns as the blocks do; further stages stand still.

    Shapes: ``(n, b, b)`` with an even ``b`` -> ``(stages, n, b, b)``.
    """
    size = blocks.shape[-1]
    index = torch.arange(size).view(2, size // 2).T.flatten()
    # A stage gathers both halves of a block in turn, and its blocks are not transposed.
    first = -blocks[:, index][:, :, index]
    return torch.cat([first.unsqueeze(0), first.new_zeros(stages - 1, *first.shape)])


def _rescale(magnitude: Tensor | None, dims: int | None) -> dict[str, Tensor]:
    """The scale in the shape that multiplies a weight of so many dimensions."""
    return {} if magnitude is None else {"rescale": magnitude.float().view(-1, *[1] * ((dims or 2) - 1))}


def lycoris_header(
    source: Mapping[str, str], written: Mapping[str, Mapping[str, Tensor]], tensors: Mapping[str, Tensor], alpha: float
) -> dict[str, str]:
    """The header as LyCORIS 3.0 and later write it.

    Args:
        source: metadata of the file that was converted.
        written: name of a layer -> its parts.
        tensors: all tensors of the file.
        alpha: of every layer.
    """
    shapes = [parts["oft_blocks"].shape for parts in written.values()]
    butterfly = any(len(shape) == 4 for shape in shapes)
    args = {"algo": "boft" if butterfly else "diag-oft", "constraint": str(alpha)}
    if any("rescale" in parts for parts in written.values()):
        args["rescaled"] = "True"
    found = new_header(source, "lycoris.kohya", max(shape[-1] for shape in shapes), args)
    return found | {"sshs_model_hash": lycoris_hash(tensors)}
