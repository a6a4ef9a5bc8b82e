"""``oft_blocks`` written for LyCORIS, sd-scripts and ComfyUI, each with the container that it loads right."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from orthotune.errors import UnsupportedLayerError
from orthotune.files.safetensors_file import write_tensors
from orthotune.formats.adapter_state import AdapterState
from orthotune.formats.codecs.oft_blocks import dense
from orthotune.formats.codecs.written_header import header, lycoris_hash
from orthotune.rotation.butterfly import Butterfly

#: Layer, its blocks ``(n, b, b)``, whether a scale stands beside them -> blocks that the tool's loader takes right.
Arranged = Callable[[str, Tensor, bool], Tensor]
#: Metadata of the source, parts by name of the layer, tensors, alpha -> metadata of the file.
Header = Callable[[Mapping[str, str], Mapping[str, Mapping[str, Tensor]], Mapping[str, Tensor], float], dict[str, str]]

#: No tool clips at this radius, whatever it multiplies it by; it must be one for all layers, for sd-scripts reads one.
ALPHA = 1000.0


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
    found = header(source, "lycoris.kohya", max(shape[-1] for shape in shapes), args)
    return found | {"sshs_model_hash": lycoris_hash(tensors)}
