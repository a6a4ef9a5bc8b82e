"""An adapter as changes of single weights, for programs that hold the weights of a model and patch them one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from orthotune.errors import UnsupportedLayerError
from orthotune.layers.base import OFTLayer
from orthotune.operations.adapter import Adapter
from orthotune.operations.checkpoint.skeleton import ADAPTER
from orthotune.operations.checkpoint.tensor_tree import module_tree
from orthotune.operations.checkpoint.weight_merge import merge_weight
from orthotune.operations.load import apply_adapter
from orthotune.rotation.strength import Kind


@dataclass(frozen=True)
class WeightPatch:
    """The change of one weight.

    Attributes:
        name: of the layer in the adapter's file.
        layer: the adapted layer, without a weight of its own.
        strength: how far along the way from the base to the adapter it acts.
        kind: what lies between; None for that of the tool that wrote the file, or ``geodesic``.
    """

    name: str
    layer: OFTLayer
    strength: float = 1.0
    kind: Kind | None = None

    def apply(self, weight: Tensor, factor: float = 1.0) -> Tensor:
        """The adapted weight, in new memory; the same numbers as a merge of the model's files gives.

        Args:
            weight: ``(out, in)`` or ``(out, in, *kernel)``, any float dtype and device.
            factor: multiplies the strength.

        Raises:
            MergeError: the new weight holds NaN or infinity.
            ConfigError: this strength has no meaning for the layer.
        """
        self.layer.set_scale(ADAPTER, self.strength * factor, self.kind)
        self.layer._move_adapter_to_device_of_base_layer(ADAPTER, weight.device)
        return merge_weight(self.layer, "weight", weight.clone(memory_format=torch.contiguous_format), ADAPTER)


def weight_patches(
    adapter: Adapter,
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]],
    strength_of: Callable[[str], float] = lambda name: 1.0,
    kind: Kind | None = None,
) -> dict[str, WeightPatch]:
    """The changes that an adapter makes to the weights of layers.

    Args:
        adapter: of any readable format.
        shapes: component (``unet``, ``transformer``, ``text_encoder``) -> module -> shape of its weight, for every
            layer of the adapter that is wanted. A module may have the name that the adapter's file has for it.
        strength_of: strength of a layer, by ``component.module``; a layer of strength 0 has no change.
        kind: what lies between strengths 0 and 1, see :data:`~orthotune.rotation.strength.Kind`; None for that of the
            tool that wrote the file, or ``geodesic``.

    Returns:
        ``component.module`` -> its change.

    Raises:
        AdapterFileError: a layer does not fit a shape.
        ConfigError: a strength has no meaning for a layer.
        UnsupportedLayerError: a layer is no linear layer or convolution.

    Example:
        >>> import tempfile
        >>> from safetensors.torch import save_file
        >>> from orthotune.operations.adapter import read_once
        >>> path = f"{tempfile.mkdtemp()}/style.safetensors"
        >>> save_file({"lora_unet_blk_lin.oft_R.weight": torch.full((1, 1), 0.1)}, path)
        >>> patches = weight_patches(read_once(path), {"unet": {"blk.lin": (2, 2)}})
        >>> patches["unet.blk.lin"].apply(torch.eye(2))
        tensor([[ 0.9801, -0.1980],
                [ 0.1980,  0.9801]])
    """
    trees: dict[str, Any] = {
        component: module_tree({f"{module}.weight": shape for module, shape in own.items()})
        for component, own in shapes.items()
    }
    apply_adapter(trees, adapter, ADAPTER, strict=False)
    found: dict[str, WeightPatch] = {}
    for component, tree in trees.items():
        for module, layer in tree.eval().named_modules():
            if not isinstance(layer, OFTLayer):
                continue
            if set(layer.base_parameters()) != {"weight"}:
                raise UnsupportedLayerError(f"layer '{module}'", needed="a linear layer or a convolution")
            strength = strength_of(f"{component}.{module}")
            layer.set_scale(ADAPTER, strength, kind)  # refused before a weight is changed
            if strength:
                found[f"{component}.{module}"] = WeightPatch(f"{component}.{module}", layer, strength, kind)
    return found
