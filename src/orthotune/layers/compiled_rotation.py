"""Rotations inside compiled code that asks for no gradient: looked up while it runs, not computed at every call."""

from __future__ import annotations

import itertools
import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from orthotune.layers.rotation_module import Rotation

_numbers = itertools.count()
_rotations: weakref.WeakValueDictionary[int, Rotation] = weakref.WeakValueDictionary()


def numbered(rotation: Rotation) -> int:
    """A number for ``rotation`` by which compiled code finds it; it does not keep it alive."""
    number = next(_numbers)
    _rotations[number] = rotation
    return number


# A recorded CUDA graph would hold on to the rotation of its recording, whatever becomes of the parameter.
_tags: Any = tuple(
    getattr(torch._C.Tag, name) for name in ("cudagraph_unsafe",) if hasattr(torch._C.Tag, "cudagraph_unsafe")
)


@torch.library.custom_op("orthotune::rotation", mutates_args=(), tags=_tags)
def looked_up(weight: Tensor, number: int, block_size: int) -> Tensor:
    """The rotation of a parameter ``(rows, n)`` as it is now: ``(rows, b, b)`` in float32 or better.

    A copy, because compiled code may use the memory of what it is given for something else.

    Example:
        >>> from orthotune.layers.rotation_module import Rotation
        >>> from orthotune.kernels.from_parameters import RotationMap
        >>> from orthotune.rotation.blocks import BlockLayout
        >>> rotation = Rotation(BlockLayout(4, 2, shared=False), RotationMap(2))
        >>> looked_up(rotation.weight.detach(), rotation.number, 2).shape
        torch.Size([2, 2, 2])
    """
    return _rotations[number].known().clone()


@looked_up.register_fake
def _(weight: Tensor, number: int, block_size: int) -> Tensor:
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return weight.new_empty(weight.shape[0], block_size, block_size, dtype=dtype)
