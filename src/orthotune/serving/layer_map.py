"""What an adapter does at one layer, in the form in which a serving engine applies it, and its cut by rank.

Every part is the difference to doing nothing: ``R - I``, ``m - 1`` and the change of the bias. A row without an
adapter has zeros there, and ``x + x 0`` is ``x`` bit for bit; and what is rounded to the model's dtype is the change,
not the identity beside it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from orthotune.errors import ConfigError, UnsupportedLayerError
from orthotune.formats.adapter_state import LayerState
from orthotune.rotation.family import FamilyTransform
from orthotune.rotation.frozen import Blocks, FrozenMap
from orthotune.rotation.operator import Operator


@dataclass(frozen=True)
class LayerMap:
    """The map of one layer.

    Shapes:
        inputs: ``R - I``, ``(n / b, b, b)``: the input ``x`` becomes ``x + x inputs``; None for no rotation.
        outputs: ``Rᵀ - I``, ``(n / b, b, b)``: the output without its bias becomes ``y + y outputs``; or None.
        scale: ``m - 1``, ``(out,)``, the magnitude of the outputs after their rotation; or None.
        bias: ``(out,)``, the bias that the adapter has trained; or None.

    Attributes:
        operator: a map of the inputs that is not made of blocks, in place of ``inputs``.
    """

    inputs: Tensor | None = None
    outputs: Tensor | None = None
    scale: Tensor | None = None
    bias: Tensor | None = None
    operator: Operator | None = None

    @property
    def numel(self) -> int:
        """The number of elements that it holds."""
        own = (self.inputs, self.outputs, self.scale, self.bias)
        held = sum(tensor.numel() for tensor in own if tensor is not None)
        return held + (0 if self.operator is None else operator_elements(self.operator))


def operator_elements(operator: Operator) -> int:
    """The number of elements that an operator holds.

    Args:
        operator: the operator.

    Example:
        >>> from orthotune.rotation.operator import LowRank
        >>> operator_elements(LowRank(torch.zeros(1, 4), torch.zeros(1, 4)))
        8
    """
    return sum(tensor.numel() for tensor in operator.tensors())


def layer_map(held: FrozenMap, features: int, outputs: int, layer: str, table: bool = False) -> LayerMap:
    """The map of a layer of an adapter file.

    Args:
        held: what the file holds of the layer.
        features: inputs of the complete layer, before it is cut by rank.
        outputs: its outputs.
        layer: its name, for messages.
        table: whether it is an embedding: what it looks up has ``features`` features, which the map rotates.

    Raises:
        ConfigError: the file's map does not fit a layer of this size or kind.
        UnsupportedLayerError: a map that cannot be applied to inputs or outputs alone.

    Example:
        >>> quarter = LayerState({"": torch.ones(1, 1)})
        >>> layer_map(quarter, 2, 2, "q").inputs
        tensor([[[-1., -1.],
                 [ 1., -1.]]])
    """
    scale = getattr(held, "magnitude", None)
    of_table = bool(getattr(held, "embedding", False))
    if of_table != table:
        got, needed = ("an embedding", "a linear layer") if of_table else ("a linear layer", "an embedding")
        raise ConfigError(
            f"layer '{layer}'", got=f"a map of {got}", needed=f"that of {needed}, which the engine's model has there",
            do="Name the base that the adapter was trained on",
        )  # fmt: skip
    outputs = features if table else outputs
    if scale is not None and scale.numel() != outputs:
        raise _misfit(layer, f"a magnitude of {scale.numel()} outputs", outputs)
    less = None if scale is None else scale.float() - 1
    rotated = features if held.side == "in" else outputs
    if isinstance(held, FamilyTransform):
        return replace(_family(held, rotated, layer), scale=less)
    difference = _difference(held, rotated, layer)
    if held.side == "in":
        return LayerMap(inputs=difference, scale=less)
    return LayerMap(outputs=difference.mT.contiguous(), scale=less)


def _difference(held: FrozenMap, features: int, layer: str) -> Tensor:
    """``R - I`` of every block, ``(n / b, b, b)`` in float32."""
    if isinstance(held, LayerState):
        if set(held.rotations) != {""}:
            raise _unsupported(layer, f"rotations of {', '.join(sorted(held.rotations))} in one packed weight")
        R, shared = held.for_weight((1, 1)).rotation(), held.spec.shared
    elif isinstance(held, Blocks):
        R, shared = held.matrices, held.shared
    else:
        raise _unsupported(layer, f"a {type(held).__name__}")
    size = R.shape[-1]
    if features % size if shared else features != R.shape[0] * size:
        raise _misfit(layer, f"a rotation of {R.shape[0] * size} features", features)
    R = R.double() - torch.eye(size, dtype=torch.float64)
    return (R.expand(features // size, size, size) if shared else R).float().contiguous()


def _family(held: FamilyTransform, features: int, layer: str) -> LayerMap:
    if held.needs_basis and held.basis is None:
        raise _unsupported(layer, f"transform='{held.spec.transform}', whose basis depends on the weight")
    if held.side == "out" or held.with_bias:
        raise _unsupported(layer, f"transform='{held.spec.transform}' of the outputs")
    operator = held.operator
    if operator.features != features or operator.copies > 1:
        raise _misfit(layer, f"a map of {operator.features} features", features)
    return LayerMap(operator=operator)


def _misfit(layer: str, got: str, needed: int) -> ConfigError:
    return ConfigError(
        f"layer '{layer}'", got=got, needed=f"{needed}", do="Name the base that the adapter was trained on"
    )


def _unsupported(layer: str, got: str) -> UnsupportedLayerError:
    return UnsupportedLayerError(
        f"serving layer '{layer}' unmerged", got=got, needed="rotations of a linear layer or an embedding",
        do="Merge the adapter and serve the merged model: orthotune merge",
    )  # fmt: skip


def cut_blocks(blocks: Tensor, start: int, stop: int, layer: str) -> Tensor:
    """The blocks of the features that a rank holds.

    Args:
        blocks: ``(n / b, b, b)``.
        start: the first feature of the rank.
        stop: the feature after its last one.
        layer: name of the layer, for messages.

    Raises:
        ConfigError: the features of the rank begin or end inside of a block.

    Example:
        >>> cut_blocks(torch.arange(4.0).view(4, 1, 1), 2, 4, "o").flatten().tolist()
        [2.0, 3.0]
    """
    size = blocks.shape[-1]
    if start % size or stop % size:
        raise ConfigError(
            f"layer '{layer}' cut by tensor-parallel rank",
            got=f"features {start} to {stop} of a rank, in blocks of {size}",
            needed="ranks that begin and end between two blocks",
            do="Use fewer ranks, serve the merged model, or train with a block size that divides a rank's features",
        )  # fmt: skip
    return blocks[start // size : stop // size]


def cut(found: LayerMap, inputs: tuple[int, int], outputs: tuple[int, int], layer: str) -> LayerMap:
    """The part of a map that belongs to one rank.

    Args:
        found: the map of the complete layer.
        inputs: first feature, and the one after the last, of the inputs that the rank gets.
        outputs: the same of the outputs that it computes.
        layer: name of the layer, for messages.

    A layer whose inputs are cut adds the partial outputs of all ranks afterwards: rotation and magnitude of the
    outputs are linear and act on each partial output.

    Raises:
        ConfigError: a block lies in two ranks.
        UnsupportedLayerError: the inputs are cut, and the map is not made of blocks.

    Example:
        >>> half = cut(LayerMap(inputs=torch.zeros(4, 2, 2), scale=torch.zeros(6)), (0, 4), (0, 6), "o")
        >>> half.inputs.shape, half.scale.shape
        (torch.Size([2, 2, 2]), torch.Size([6]))
    """

    def part(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[slice(*outputs)]

    operator = found.operator
    if operator is not None and inputs != (0, operator.features):
        raise UnsupportedLayerError(
            f"layer '{layer}' cut by tensor-parallel rank", got="a map that is not made of blocks",
            needed="block rotations", do="Use one rank, or serve the merged model",
        )  # fmt: skip
    return LayerMap(
        None if found.inputs is None else cut_blocks(found.inputs, *inputs, layer),
        None if found.outputs is None else cut_blocks(found.outputs, *outputs, layer),
        part(found.scale), part(found.bias), operator,
    )  # fmt: skip


def embedded(blocks: Tensor, size: int) -> Tensor:
    """Blocks ``b`` as the diagonal of blocks of a multiple of ``b``; the product with ``x`` is the same.

    Args:
        blocks: ``(n / b, b, b)``, the difference to the identity.
        size: multiple of ``b`` that divides ``n``.

    Returns:
        ``(n / size, size, size)``.

    Example:
        >>> embedded(torch.ones(2, 1, 1), 2)
        tensor([[[1., 0.],
                 [0., 1.]]])
    """
    own = blocks.shape[-1]
    times = size // own
    large = blocks.new_zeros(blocks.shape[0] // times, times, own, times, own)
    for index in range(times):
        large[:, index, :, index] = blocks[index::times]
    return large.view(-1, size, size)


def as_dtype(found: LayerMap, dtype: torch.dtype) -> LayerMap:
    """The map with its blocks in the dtype of the model, in which an engine keeps them; the rest stays in float32.

    Args:
        found: the map.
        dtype: of the blocks.

    Example:
        >>> as_dtype(LayerMap(inputs=torch.zeros(1, 2, 2)), torch.bfloat16).inputs.dtype
        torch.bfloat16
    """

    def own(blocks: Any) -> Any:
        return None if blocks is None else blocks.to(dtype)

    return replace(found, inputs=own(found.inputs), outputs=own(found.outputs))
