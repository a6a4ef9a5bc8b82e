"""Combine adapter files into one adapter, without the base, or into a LoRA, with the base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from orthotune.errors import AdapterFileError
from orthotune.formats.adapter_state import AdapterState, LayerState
from orthotune.operations.checkpoint.changes import Change, changes
from orthotune.operations.checkpoint.stream import DenseMerge
from orthotune.rotation.family import FamilyTransform
from orthotune.tuner.combination import Combination, warn_series


def combine_states(states: Sequence[AdapterState], how: Combination) -> AdapterState:
    """Combine several adapters into one; a layer that an adapter does not have counts as the identity.

    Raises:
        AdapterFileError: an adapter holds more than rotations, or has no layer in common with another one.
        UnsupportedLayerError: the adapters have no common form at a layer.

    Example:
        >>> import torch
        >>> from orthotune.formats.adapter_state import LayerState
        >>> quarter = AdapterState({"q": LayerState({"": torch.ones(2, 1)})})
        >>> half = combine_states([quarter], Combination([0.5])).layers["q"]
        >>> half.rotation()[0]
        tensor([[ 0.7071, -0.7071],
                [ 0.7071,  0.7071]])
    """
    for state in states:
        what = f"combining {state.source or 'an adapter'}"
        if names := [name for name, held in state.transforms.items() if not isinstance(held, FamilyTransform)]:
            raise AdapterFileError(
                what, got=f"{len(names)} layers that no transform represents, such as '{names[0]}'",
                needed="rotations that a layer can train",
            )  # fmt: skip
        if state.other:
            raise AdapterFileError(
                what, got=f"{len(state.other)} tensors that are not rotations", needed="an adapter of rotations only"
            )
    if len(states) > 1:
        for state in states:
            own = {**state.layers, **state.transforms}
            others = {name for other in states if other is not state for name in (*other.layers, *other.transforms)}
            if not others & set(own):
                raise AdapterFileError(
                    f"combining {state.source or 'an adapter'}",
                    got=f"no layer in common with the others, for example '{next(iter(own), '')}' "
                    f"and '{next(iter(others), '')}'",
                    do="Different formats name the same layer differently: convert all adapters to one format first",
                )
    names = list(dict.fromkeys(name for state in states for name in (*state.layers, *state.transforms)))
    layers: dict[str, LayerState] = {}
    transforms: dict[str, FamilyTransform] = {}
    off: dict[str, float] = {}
    for name in names:
        held: list[Any] = [state.layers.get(name, state.transforms.get(name)) for state in states]
        known = [
            layer.for_weight((1,) * layer.dims) if isinstance(layer, LayerState) and layer.dims else layer
            for layer in held
        ]
        made, off[name] = how.of_any(name, known)
        if isinstance(made, LayerState):
            layers[name] = made
        else:
            transforms[name] = made
    warn_series(off)
    prefixes = {name: prefix for state in reversed(states) for name, prefix in state.prefixes.items()}
    first = states[0]
    bases = {state.config.get("base_model_name_or_path") for state in states} - {None}
    config = {"task_type": first.config.get("task_type")}
    if len(bases) == 1:
        config["base_model_name_or_path"] = bases.pop()
    return AdapterState(layers, config, transforms=transforms, prefixes=prefixes, format=first.format)


@dataclass(frozen=True)
class SumOfChanges(Change):
    """The weighted sum of the changes that several adapters make to one weight."""

    terms: tuple[tuple[float, Change], ...] = ()

    def compute(self) -> Tensor:
        (weight, first), *rest = self.terms
        total = weight * first.compute()
        for weight, change in rest:
            total = total + weight * change.compute()
        return total


def summed_changes(merges: Sequence[DenseMerge], weights: Sequence[float]) -> list[Change]:
    """``w_1 (W_1 - W) + w_2 (W_2 - W) + ...`` for each weight that at least one adapter changes.

    Raises:
        MergeError: as for :func:`~orthotune.operations.checkpoint.changes.changes`.
    """
    terms: dict[tuple[str, str], list[tuple[float, Change]]] = {}
    for merge, weight in zip(merges, weights, strict=True):
        for change in changes(merge):
            terms.setdefault((change.component, change.module), []).append((weight, change))
    return [
        SumOfChanges(**{name: getattr(own[0][1], name) for name in Change.__dataclass_fields__}, terms=tuple(own))
        for own in terms.values()
    ]
