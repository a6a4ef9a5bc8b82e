"""The distance of two adapters, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from orthotune.errors import AdapterFileError
from orthotune.formats.adapter_state import AdapterState, LayerState
from orthotune.rotation.measure import rotation_angles


@dataclass(frozen=True)
class LayerDistance:
    """The distance of two adapters at one matrix. Angles are in radians.

    Args:
        layer, part: name of the layer, and of the matrix in a layer with several.
        angle_max, angle_mean: largest and mean rotation angle of ``R_aᵀ R_b``; 0 for equal rotations.
        cosine: cosine between the packed parameters; -1 for opposite rotations, 0 for unrelated ones. None if one is
        the
            identity, or if the blocks have different sizes.
    """

    layer: str
    part: str
    angle_max: float
    angle_mean: float
    cosine: float | None


def compare_adapters(one: AdapterState, other: AdapterState) -> tuple[list[LayerDistance], list[str]]:
    """The distance at every layer that both adapters rotate on the same side, and the names of all other layers.

    Blocks of different sizes are joined into equal ones, if one size divides the other.

    Raises:
        AdapterFileError: no layer is rotated by both, or blocks cannot be compared; names the layer.

    Example:
        >>> state = AdapterState({"q": LayerState({"": torch.ones(2, 3)})})
        >>> compare_adapters(state, state)[0][0].angle_mean < 1e-6
        True
    """
    shared = [name for name in one.layers if name in other.layers and _alike(one.layers[name], other.layers[name])]
    if not shared:
        others = set(one.transforms) & set(other.transforms)
        raise AdapterFileError(
            f"{one.source} and {other.source}",
            got=f"{len(others)} common layers of other transforms than blocks" if others
            else "no layer that both rotate on the same side",
            needed="block rotations of the same layers of one model",
        )  # fmt: skip
    rows = [
        _distance(name, part, one.layers[name], other.layers[name])
        for name in shared
        for part in one.layers[name].rotations
    ]
    return rows, sorted(set(one.layers) ^ set(other.layers) | ((set(one.layers) & set(other.layers)) - set(shared)))


def _alike(a: LayerState, b: LayerState) -> bool:
    same = (a.spec.side, a.spec.conv) == (b.spec.side, b.spec.conv)
    return same and a.rotations.keys() == b.rotations.keys() and a.embedding == b.embedding


def _distance(name: str, part: str, a: LayerState, b: LayerState) -> LayerDistance:
    R, S = a.rotation(part).double(), b.rotation(part).double()
    size = max(R.shape[-1], S.shape[-1])
    if size % R.shape[-1] or size % S.shape[-1]:
        raise AdapterFileError(f"layer '{name}'", got=f"blocks of {R.shape[-1]} and of {S.shape[-1]}",
                               needed="sizes of which one divides the other")  # fmt: skip
    v, w = a.vector(part).double().flatten(), b.vector(part).double().flatten()
    norms = v.norm() * w.norm()
    comparable = v.shape == w.shape and bool(norms > 0)
    R, S = _large(R, size, a.spec.shared), _large(S, size, b.spec.shared)
    if len({len(R), len(S)} - {1}) > 1:
        raise AdapterFileError(
            f"layer '{name}'", got=f"{len(R)} and {len(S)} blocks of {size}", needed="equal numbers of blocks"
        )
    angles = rotation_angles(R.mT @ S)
    return LayerDistance(
        name, part, angles.max().item(), angles.mean().item(), (v @ w / norms).item() if comparable else None
    )


def _large(R: Tensor, size: int, shared: bool) -> Tensor:
    """Blocks joined into larger ones, ``(blocks, size, size)``; a shared block stays one."""
    small = R.shape[-1]
    times = size // small
    if times == 1:
        return R
    groups = R.expand(times, -1, -1)[None] if shared else R.view(-1, times, small, small)
    return torch.stack([torch.block_diag(*group) for group in groups])
