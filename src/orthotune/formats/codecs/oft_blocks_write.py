"""``oft_blocks`` written for LyCORIS, sd-scripts and ComfyUI, each with the container that it loads right."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from orthotune.errors import UnsupportedLayerError
from orthotune.files.safetensors_file import write_tensors
from orthotune.formats.adapter_state import AdapterState, LayerState
from orthotune.formats.codecs.oft_blocks import dense
from orthotune.formats.codecs.written_header import header, kohya_hash, lycoris_hash
from orthotune.formats.names.spelling import spelled
from orthotune.rotation.butterfly import Butterfly

Tool = Literal["lycoris", "kohya-oft", "comfyui"]

#: No tool clips at this radius, whatever it multiplies it by; it must be one for all layers, for sd-scripts reads one.
ALPHA = 1000.0


def write(state: AdapterState, out: Path, tool: Tool) -> Path:
    """One file for a tool, from layers that turn exactly on the output side and butterflies of that side.

    Raises:
        UnsupportedLayerError: a layer is of another kind, or the tool's loader would not take its blocks.
        OutputError: the file cannot be written.
    """
    names = spelled([*state.layers, *state.transforms], tool)
    norms = [1.0]
    written: dict[str, dict[str, Tensor]] = {}
    for name, layer in state.layers.items():
        vector = layer.vector()
        norms.append(float(torch.linalg.vector_norm(vector)) * math.sqrt(2))
        written[names[name]] = _rotation(name, dense(vector), layer, tool)
    for name, transform in state.transforms.items():
        if not isinstance(transform, Butterfly):
            raise UnsupportedLayerError(f"layer '{name}'", got=type(transform).__name__, needed="a rotation")
        norms.append(float(torch.linalg.vector_norm(transform.skew)))
        blocks = {"oft_blocks": -transform.skew / 2}  # stages are C+(A - Aᵀ), the state's C-(skew)
        written[names[name]] = blocks | _rescale(transform.magnitude, transform.dims)
    if tool == "kohya-oft":
        _check_kohya(written)
    alpha = torch.tensor(max(ALPHA, 2 * max(norms)))
    tensors: dict[str, Tensor] = {}
    for stem, parts in written.items():
        tensors |= {f"{stem}.{suffix}": tensor.contiguous() for suffix, tensor in parts.items()}
        tensors[f"{stem}.alpha"] = alpha.clone()
    return write_tensors(out, tensors, _metadata(state.metadata, tensors, written, tool, float(alpha)))


def _rotation(name: str, blocks: Tensor, layer: LayerState, tool: Tool) -> dict[str, Tensor]:
    scale = _rescale(layer.magnitude, layer.dims)
    count, size = blocks.shape[:2]
    stages = 0
    if tool == "comfyui" and scale:
        stages = 1  # it reads the scale of butterflies alone
        if size % 2 and count % 2 == 0:
            blocks = paired(blocks)
        elif size % 2:
            raise UnsupportedLayerError(
                f"layer '{name}' for ComfyUI", got=f"a scale of the rows beside {count} blocks of {size}",
                needed="an even size or number of blocks: ComfyUI reads a scale from butterflies alone",
            )  # fmt: skip
    elif tool == "lycoris" and size > count:
        # Its loader chooses the block size again, and takes the smaller of the two numbers.
        stages = count.bit_length()
        if size % 2 or count & (count - 1):
            raise UnsupportedLayerError(
                f"layer '{name}' for LyCORIS", got=f"{count} blocks of {size}",
                needed="no larger blocks than there are of them, or an even size and a count that is a power of two",
            )  # fmt: skip
    return {"oft_blocks": as_butterfly(blocks, stages) if stages else blocks} | scale


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


def _check_kohya(written: Mapping[str, Mapping[str, Tensor]]) -> None:
    counts = {stem: parts["oft_blocks"].shape[0] for stem, parts in written.items()}
    if len(set(counts.values())) > 1:
        raise UnsupportedLayerError(
            "sd-scripts networks.oft, which takes one number of blocks for all layers",
            got=f"{' and '.join(map(str, sorted(set(counts.values()))))} blocks",
            do="Write it for LyCORIS or ComfyUI, which take each layer's own",
        )


def _metadata(
    source: Mapping[str, str],
    tensors: Mapping[str, Tensor],
    written: Mapping[str, Mapping[str, Tensor]],
    tool: Tool,
    alpha: float,
) -> dict[str, str]:
    shapes = [parts["oft_blocks"].shape for parts in written.values()]
    if tool == "kohya-oft":
        found = header(source, "networks.oft", shapes[0][0], {})
        del found["ss_network_args"]
        return found | {"ss_network_alpha": str(alpha), "sshs_model_hash": kohya_hash(tensors)}
    butterfly = any(len(shape) == 4 for shape in shapes)
    args = {"algo": "boft" if butterfly else "diag-oft", "constraint": str(alpha)}
    if any("rescale" in parts for parts in written.values()):
        args["rescaled"] = "True"
    found = header(source, "lycoris.kohya", max(shape[-1] for shape in shapes), args)
    return found | {"sshs_model_hash": lycoris_hash(tensors)}
