"""``diagnose``: measure an adapter in its model, or in its file, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from orthotune.errors import ConfigError
from orthotune.formats.adapter_state import AdapterState
from orthotune.kernels.rotate_weight import rotate_full
from orthotune.layers.base import OFTLayer
from orthotune.layers.parametrization.family import FamilyRotation
from orthotune.operations.diagnosis.advice import Advice, advise
from orthotune.operations.diagnosis.rotation_facts import RotationFacts, rotation_facts
from orthotune.operations.diagnosis.weight_facts import WeightFacts, weight_facts
from orthotune.rotation.family import FamilyTransform


@dataclass(frozen=True)
class Diagnosis:
    """The facts of one adapter, and warnings.

    Args:
        rotations: one entry for each rotation, in the order of the layers.
        weights: layer and part -> the change of the weight; empty without a model.
        gradients: layer -> norm of the gradient, if there is one.
        advice: warnings with a remedy.
    """

    rotations: list[RotationFacts]
    weights: dict[tuple[str, str], WeightFacts] = field(default_factory=dict)
    gradients: dict[str, float | None] = field(default_factory=dict)
    advice: list[Advice] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """Plain values ready for JSON: one row for each rotation, and the warnings.

        The ``angle_histogram`` of all rows has the same axis, from 0 to the largest angle ``angle_top``.
        """
        top = max((facts.angle_max for facts in self.rotations if math.isfinite(facts.angle_max)), default=0.0)
        rows = []
        for facts in self.rotations:
            row = facts.record(top)
            weight = self.weights.get((facts.layer, facts.part))
            row |= asdict(weight) if weight is not None else {}
            if facts.layer in self.gradients:
                row["gradient_norm"] = self.gradients[facts.layer]
            rows.append(row)
        advice = [asdict(one) | {"layers": list(one.layers)} for one in self.advice]
        return {"layers": rows, "angle_top": top, "advice": advice}


def diagnose(model: nn.Module, adapter_name: str | None = None, *, weights: bool = True) -> Diagnosis:
    """Measure the effect of an adapter on each layer of its model; nothing is changed.

    Gradient norms are included if the parameters have gradients, that is after a backward.

    Args:
        model: a model with adapters.
        adapter_name: name of the adapter; None for the first active one.
        weights: also measure energy, spectrum and distance of the weights, at the cost of an SVD for each layer.

    Raises:
        ConfigError: the model has no adapter of that name with rotations.

    Example:
        >>> from orthotune import OFTConfig, get_peft_model
        >>> model = get_peft_model(nn.Sequential(nn.Linear(4, 4)), OFTConfig(r=2, target_modules=["0"]))
        >>> print(diagnose(model).advice[0].warning)
        The adapter does nothing: no plane is rotated
    """
    layers = {n.removeprefix("base_model.model."): m for n, m in model.named_modules() if isinstance(m, OFTLayer)}
    if adapter_name is None:
        active = (name for layer in layers.values() for name in layer.active_adapters if layer.rotations(name))
        adapter_name = next(active, "default")
    held = {name: layer for name, layer in layers.items() if layer.rotations(adapter_name)}
    if not held:
        known = sorted({name for layer in layers.values() for name in layer.oft_settings})
        raise ConfigError(
            f"adapter '{adapter_name}'",
            got=f"adapters {', '.join(known)}" if known else "a model without OFT adapters",
            needed="an adapter with rotations",
        )
    facts: list[RotationFacts] = []
    measured: dict[tuple[str, str], WeightFacts] = {}
    gradients: dict[str, float | None] = {}
    with torch.no_grad():
        for name, layer in held.items():
            facts += list(_of_layer(name, layer, adapter_name))
            gradients |= _gradient(name, layer, adapter_name)
            if weights:
                measured |= {(name, part): found for part, found in _weights(layer, adapter_name)}
    return Diagnosis(facts, measured, gradients, advise(facts, gradients))


def diagnose_state(state: AdapterState) -> Diagnosis:
    """Diagnose an adapter from its file only: everything except weights and gradients.

    Example:
        >>> from orthotune.formats.adapter_state import LayerState
        >>> diagnose_state(AdapterState({"lin": LayerState({"": torch.zeros(2, 3)})})).rotations[0].dead
        1.0
    """
    facts = [
        rotation_facts(held.rotation(part), held.vector(part), held.spec, layer=name, part=part)
        for name, held in state.layers.items()
        for part in held.rotations
    ]
    for name, transform in state.transforms.items():
        if isinstance(transform, FamilyTransform):
            facts += [rotation_facts(R, None, transform.spec, layer=name) for _, R in transform.factors()]
    return Diagnosis(facts, advice=advise(facts))


def _of_layer(name: str, layer: OFTLayer, adapter: str) -> Iterator[RotationFacts]:
    for part, rotation in layer.rotations(adapter).items():
        if isinstance(rotation, FamilyRotation):
            yield rotation_facts(rotation.factors(), None, rotation.spec, layer=name, part=part)
            continue
        spec, (rows, elements) = rotation.spec, rotation.weight.shape
        v = spec.vector(rotation.weight.view(rotation.copies, rows // rotation.copies, elements))
        # The COFT radius depends on the number of blocks of one expert; these facts are about all experts together.
        spec = spec if rotation.copies == 1 else replace(spec, eps=None)
        yield rotation_facts(rotation(every_block=True), v, spec, layer=name, part=part)


def _gradient(name: str, layer: OFTLayer, adapter: str) -> dict[str, float | None]:
    stored = [p for p in layer.stored(adapter) if p.requires_grad]
    if not stored:
        return {}
    norms = [p.grad.double().norm() for p in stored if p.grad is not None]
    return {name: torch.stack(norms).norm().item() if norms else None}


def _weights(layer: OFTLayer, adapter: str) -> Iterator[tuple[str, WeightFacts]]:
    side = layer.oft_settings[adapter].spec.side
    with layer.unmerged():
        for part, matrix in layer.matrices().items():
            after = rotate_full(matrix, layer.steps(part, [adapter], every_block=True))
            yield part, weight_facts(_vectors(matrix, side), _vectors(after, side))


def _vectors(weight: Tensor, side: str) -> Tensor:
    """One row for each rotated vector: a neuron, or a column of the weight if the outputs are rotated."""
    return weight.mT if side == "out" else weight
