"""The tensors of PEFT folders, as each version loads them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from orthotune.formats.adapter_state import AdapterState
from orthotune.formats.codecs import oft_blocks
from orthotune.rotation.family import FamilyTransform


def packed(state: AdapterState, keys: Mapping[str, str]) -> dict[str, Tensor]:
    """Packed triangles and magnitudes of PEFT since 0.16.

    Args:
        state: layers of any number of parts.
        keys: layer -> prefix of its tensor names.
    """
    tensors = {}
    for name, layer in state.layers.items():
        kind = "oft_embedding_R" if layer.embedding else "oft_R"
        for part in layer.rotations:
            tensors[f"{keys[name]}.{kind}.{part + '.' if part else ''}weight"] = layer.vector(part)
        if layer.magnitude is not None:
            tensors[f"{keys[name]}.oft_magnitude"] = layer.magnitude
    for name, transform in state.transforms.items():
        assert isinstance(transform, FamilyTransform)
        kind = "oft_embedding_R" if transform.embedding else "oft_R"
        tensors[f"{keys[name]}.{kind}.weight"] = transform.numbers
        if transform.basis is not None:
            tensors[f"{keys[name]}.{kind}.basis"] = transform.basis
        if transform.magnitude is not None:
            tensors[f"{keys[name]}.oft_magnitude"] = transform.magnitude
    return tensors


def dense(state: AdapterState, keys: Mapping[str, str], factor: float) -> dict[str, Tensor]:
    """Dense blocks ``A`` of PEFT before 0.16, which computes ``C-((A - Aᵀ) / 2)``.

    Args:
        state: layers with one rotation.
        keys: layer -> prefix of its tensor names.
        factor: multiplies the skew blocks; -1 for versions that transpose the rotation.
    """
    return {f"{keys[n]}.oft_r": oft_blocks.dense(layer.vector(), factor) for n, layer in state.layers.items()}


def columns(state: AdapterState, keys: Mapping[str, str]) -> dict[str, Tensor]:
    """Scales of the rows of PEFT 0.14 and 0.15.

    Args:
        state: all its layers have a scale.
        keys: layer -> prefix of its tensor names.
    """
    tensors = {}
    for name, layer in state.layers.items():
        assert layer.magnitude is not None
        tensors[f"{keys[name]}.oft_s"] = layer.magnitude.float().view(-1, 1)
    return tensors
