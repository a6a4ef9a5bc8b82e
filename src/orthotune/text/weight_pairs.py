"""The weights of a trained model before and after training, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from orthotune.layers.base import OFTLayer
from orthotune.layers.parametrization.family import FamilyRotation
from orthotune.layers.quantized_linear import QuantizedLinear
from orthotune.metrics.weights import layer_changes, worst_orthogonality_error
from orthotune.runs.record import WeightChange
from orthotune.runs.sharded_model import unsharded_modules

Pair = tuple[str, Tensor, Tensor]


def weight_change(model: nn.Module, base: Any | None = None) -> WeightChange:
    """The largest change over the layers of a trained model, whose weights are left as they were.

    Args:
        model: a model with an adapter, or, with ``base``, one whose own weights were trained.
        base: the pretrained model again, when there is no adapter.
    """
    changes = layer_changes(weight_pairs(model, base))
    return WeightChange(
        orthogonality_error=worst_orthogonality_error(_rotations(model)),
        energy_change=max((change.energy for change in changes), default=None),
        angle_change=max((change.angles for change in changes), default=None),
    )


def weight_pairs(model: nn.Module, base: Any | None = None) -> Iterator[Pair]:
    """(layer, weight before, weight after) of each trained linear layer or convolution, a row per rotated vector.

    Arguments as for :func:`weight_change`. Shapes: ``(neurons, inputs)``.
    """
    return _adapted(model) if base is None else _trained(model, base)


def _adapted(model: nn.Module) -> Iterator[Pair]:
    for name, module in unsharded_modules(model):
        if isinstance(module, QuantizedLinear):
            rotated = module.merged_parameters(module.active_adapters)["weight"]
            yield name, _neurons(module, module.matrices()[""]), _neurons(module, rotated)
            continue
        if not isinstance(module, BaseTunerLayer) or not _has_neurons(module.get_base_layer()):
            continue
        base: Any = module.get_base_layer()
        kept = base.weight.detach().clone()
        module.merge()
        yield name, _neurons(module, kept), _neurons(module, base.weight.detach().clone())
        module.unmerge()
        # LoRA's unmerge subtracts and leaves a rounding behind. In place: FSDP2 keeps the memory in its own hands.
        base.weight.data.copy_(kept)


def _trained(model: nn.Module, base: nn.Module) -> Iterator[Pair]:
    before = dict(base.named_modules())
    embeddings: Any = getattr(model, "get_output_embeddings", None)
    output = embeddings() if embeddings else None  # image models have none
    for name, module in unsharded_modules(model):
        if _has_neurons(module) and module is not output:
            old: Any = before[name]
            now: Any = module.weight
            yield name, _neurons(old, old.weight.to(now.device)), _neurons(module, now)


def _rotations(model: nn.Module) -> Iterator[Tensor]:
    with torch.no_grad():
        for _, module in unsharded_modules(model):
            if isinstance(module, OFTLayer):
                for adapter in module.active_adapters:
                    for rotation in module.rotations(adapter).values():
                        yield rotation.factors() if isinstance(rotation, FamilyRotation) else rotation()


def _has_neurons(layer: nn.Module) -> bool:
    weight = getattr(layer, "weight", None)
    kind = isinstance(layer, nn.Linear | Conv1D) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
    return kind and isinstance(weight, Tensor) and weight.is_floating_point()


def _neurons(module: nn.Module, weight: Tensor) -> Tensor:
    """One row per vector that is rotated: a neuron, or a column where the output side is rotated."""
    layer = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    # A convolution's neuron is all that one output channel sees of a patch.
    rows = weight.mT if isinstance(layer, Conv1D) else weight.flatten(1)
    sides = {settings.spec.side for settings in getattr(module, "oft_settings", {}).values()}
    return rows.mT if sides == {"out"} else rows
