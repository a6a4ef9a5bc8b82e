"""Merge an adapter into one weight, or into one expert of a stack, in place."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orthotune.errors import AdapterFileError, MergeError
from orthotune.kernels.finite import all_finite
from orthotune.kernels.rotate_weight import RUN, rotate_weight
from orthotune.layers.base import OFTLayer
from orthotune.layers.parametrization.family import FamilyRotation


@torch.no_grad()
def merge_weight(layer: OFTLayer, parameter: str, weight: Tensor, adapter: str) -> Tensor:
    """Overwrite ``weight`` with the merged weight ``W'`` and return it, in the same dtype.

    Besides the weight, only the rotation and a few float32 buffers are in memory, see
    :func:`~orthotune.kernels.rotate_weight.rotate_weight`.

    Args:
        layer: the adapted layer; its base may be on the meta device.
        parameter: name of the weight below the layer's base, as in ``layer.base_parameters()``.
        weight: values of the parameter, in its shape, contiguous.
        adapter: name of the adapter.

    Raises:
        MergeError: the new weight holds NaN or infinity.

    Example:
        >>> from orthotune.layers.linear import Linear
        >>> from orthotune.layers.settings import LayerSettings
        >>> from orthotune.rotation.spec import RotationSpec
        >>> settings = LayerSettings("q", RotationSpec(block_size=2))
        >>> layer = Linear(nn.Linear(4, 2, device="meta"), "default", settings)
        >>> rotation = layer.rotations("default")[""]
        >>> rotation.weight = nn.Parameter(torch.ones(2, 1))  # Q = [[0, 1], [-1, 0]]: 90 degrees
        >>> merge_weight(layer, "weight", torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]]), "default")[0]
        tensor([ 0.,  1., -1.,  0.])
    """
    if layer.frozen_map(adapter) is not None:
        try:
            weight.copy_(layer.frozen_weight(adapter, weight))
        except AdapterFileError as error:  # raised without the layer's name
            name = layer.oft_settings[adapter].layer
            raise AdapterFileError(f"layer '{name}': {error.given}", got=error.got, needed=error.needed) from error
        return _finite(layer, parameter, weight, adapter)
    with layer.holding({parameter: nn.Parameter(weight, requires_grad=False)}):
        for part, matrix in layer.matrices().items():
            if (
                matrix.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()
            ):  # skip matrices of other parameters
                _take_basis(layer, part, matrix, adapter)
                rotate_weight(matrix, layer.steps(part, [adapter], every_block=True), out=matrix)
    return _finite(layer, parameter, weight, adapter)


@torch.no_grad()
def merge_copy(layer: OFTLayer, parameter: str, weight: Tensor, adapter: str, index: int, count: int) -> Tensor:
    """Overwrite ``weight``, matrix ``index`` of a stack of ``count``, with its value in the merged stack.

    Raises:
        MergeError: the new weight holds NaN or infinity.
    """
    matrix = weight.mT if getattr(layer, "input_first", False) else weight
    _take_basis(layer, "", matrix, adapter, index)
    steps = layer.steps("", [adapter], every_block=True)
    rotate_weight(matrix, [step.of_copy(index, count) for step in steps], out=matrix)
    return _finite(layer, parameter, weight, adapter)


def _take_basis(layer: OFTLayer, part: str, matrix: Tensor, adapter: str, index: int | None = None) -> None:
    """Compute a basis that the file of the adapter lacks from the weight, which the layer did not have so far."""
    rotation = layer.rotations(adapter)[part]
    if not isinstance(rotation, FamilyRotation) or rotation.basis is None:
        return
    basis = rotation.basis if index is None else rotation.basis[index]
    if not basis.any():
        basis.copy_(rotation.kind.basis_of(rotation.spec, matrix))
        rotation.memo.drop("miss: the basis is computed")  # the memo looks at the parameters alone


def release(layer: OFTLayer, adapter: str) -> None:
    """Free the cached blocks of a finished layer: those of all layers together may be larger than a shard."""
    for rotation in layer.rotations(adapter).values():
        rotation.memo.drop("miss: released after its weight was merged")


def _finite(layer: OFTLayer, parameter: str, weight: Tensor, adapter: str) -> Tensor:
    if not all(all_finite(run) for run in weight.view(-1).split(RUN)):
        raise MergeError(
            f"merging ['{adapter}'] into layer '{layer.oft_settings[adapter].layer}'",
            got=f"NaN or infinite values in the new {parameter}",
            do="Nothing was written. The adapter or the base weight is broken: run `orthotune inspect`",
        )
    return weight
