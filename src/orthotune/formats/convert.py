"""An adapter made ready for another tool: lossless, or on demand nearly, or refused with the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from orthotune.errors import ConfigError, UnsupportedLayerError, nearest
from orthotune.files.names import shortened
from orthotune.formats.adapter_state import AdapterState, LayerState
from orthotune.formats.format import Format
from orthotune.formats.kinds import DENSE, DIFF, RAGGED, Verdict, kind_of
from orthotune.formats.peft.config_field import whole
from orthotune.formats.registry import targets
from orthotune.rotation.butterfly import Butterfly
from orthotune.rotation.cayley import inverse_cayley
from orthotune.rotation.frozen import FrozenMap
from orthotune.rotation.packing import pack

DIMS = "the shape of a scale tells convolutions, and the file does not say which layers are convolutions"

UNCHECKED = (
    "the blocks are taken to fill their weights, which only --base can tell: PEFT before 0.14 cut them at the edge "
    "where their number did not divide the outputs"
)

#: layer -> shape of its weight in the base, ``(out, in)`` or ``(out, in, *kernel)``
Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Plan:
    """What a conversion does.

    Attributes:
        target: id of the format.
        verdict: the worst of all layers'.
        reasons: reason -> layers, for what is not lossless.
        needs_base: layers whose conversion hangs on the shape of their weight, and the reason.
        notes: what was taken for granted.
    """

    target: str
    verdict: Verdict
    reasons: Mapping[str, list[str]] = field(default_factory=dict)
    needs_base: Mapping[str, list[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def plan(state: AdapterState, target: str, shapes: Shapes | None = None, *, linear: bool = False) -> Plan:
    """Whether and how the adapter can be written for a target; nothing is computed.

    Args:
        state: the adapter.
        target: id of a format that can be written.
        shapes: the base's weights, as far as they are known.
        linear: every layer is known to be linear, none a convolution.

    Raises:
        ConfigError: there is no such target.

    Example:
        >>> plan(AdapterState({"lin": LayerState({"": torch.zeros(2, 3)})}), "lycoris").verdict
        'impossible'
    """
    known = targets()
    if target not in known:
        near = nearest(target, known)
        raise ConfigError(
            f"--to {target}", needed=f"one of {', '.join([*known, DIFF])}",
            do=f"Did you mean {near[0]}?" if near else None,
        )  # fmt: skip
    shapes, can = shapes or {}, known[target]
    order: list[Verdict] = ["lossless", "approximate", "impossible"]
    worst = order[0]
    reasons: dict[str, list[str]] = {}
    needs: dict[str, list[str]] = {}
    for name, layer in {**state.layers, **state.transforms}.items():
        shape = shapes.get(name)
        found, reason = can.can_hold(_kind(layer, shape))
        if reason:
            reasons.setdefault(reason, []).append(name)
        worst = order[max(order.index(worst), order.index(found))]
        for needed in [] if shape is not None else _open(layer, can, linear, state):
            needs.setdefault(needed, []).append(name)
    ragged = [name for name, layer in state.layers.items() if layer.ragged and name not in shapes]
    notes = (UNCHECKED,) if ragged and RAGGED not in can.lossless else ()
    return Plan(target, worst, reasons, needs, notes)


def _kind(layer: FrozenMap, shape: Sequence[int] | None) -> str:
    if isinstance(layer, LayerState) and layer.ragged and shape is not None and not layer.runs_on(shape[0]):
        return RAGGED
    return kind_of(layer)


def _open(layer: FrozenMap, can: Format, linear: bool, state: AdapterState) -> list[str]:
    """What must be known of the base before this layer can be converted."""
    if not isinstance(layer, LayerState):
        known = not isinstance(layer, Butterfly) or layer.magnitude is None or layer.dims or linear
        return [] if known or not can.scale_dims else [DIMS]
    found = []
    if can.scale and layer.magnitude is None:
        found.append("every layer has a scale there, and the file does not say how many rows the weight has")
    elif can.scale_dims and layer.magnitude is not None and not layer.dims and not linear:
        found.append(DIMS)
    if layer.conv_reversed != can.conv_reversed and not layer.spec.exact and not layer.embedding and not linear:
        found.append("convolutions turn the other way, and the file does not say which layers are convolutions")
    if layer.spec.shared and not can.shared and not _count_in_config(layer, state):
        found.append("one block stands for all, and the file does not say for how many")
    return found


def _count_in_config(layer: LayerState, state: AdapterState) -> int:
    """The blocks of a shared layer, as PEFT's config before 0.14 says it for all layers alike."""
    patterned = state.config.get("rank_pattern")
    return 0 if not layer.ragged or patterned else whole(state.config, "r", 8)


def convert(
    state: AdapterState, target: str, shapes: Shapes | None = None, *, approximate: bool = False, linear: bool = False
) -> tuple[AdapterState, dict[str, float]]:
    """The adapter as the target's writer takes it, and the error of each layer that is not the same any more.

    The error of a layer is the spectral norm of the difference of the two rotations: the weight's relative change is
    at most that.

    Raises:
        UnsupportedLayerError: a layer cannot be written, cannot without ``approximate``, or needs the base.

    Example:
        >>> from orthotune.rotation.spec import RotationSpec
        >>> state = AdapterState({"lin": LayerState({"": torch.full((2, 3), 0.1)}, RotationSpec(map="neumann"))})
        >>> converted, errors = convert(state, "peft-0.14", {"lin": (5, 6)}, approximate=True)
        >>> converted.layers["lin"].spec.map, errors["lin"] < 1e-3
        ('exact', True)
    """
    planned, shapes = plan(state, target, shapes, linear=linear), shapes or {}
    can = targets()[target]
    if planned.verdict == "impossible" or (planned.verdict == "approximate" and not approximate):
        raise UnsupportedLayerError(
            f"{len({n for names in planned.reasons.values() for n in names})} layers cannot be written for "
            f"{can.tool}" + ("" if planned.verdict == "impossible" else " without loss"),
            got="; ".join(f"{reason} ({shortened(names)})" for reason, names in planned.reasons.items()),
            do=DENSE if planned.verdict == "impossible" else f"Add --approximate, and see the error. {DENSE}",
        )
    if planned.needs_base:
        raise UnsupportedLayerError(
            f"{state.source or 'the adapter'} alone does not say enough",
            got="; ".join(f"{reason} ({shortened(names)})" for reason, names in planned.needs_base.items()),
            do="Name the base with --base, or pass --linear if no layer is a convolution",
        )
    layers, errors = {}, {}
    known = {name: 2 for name in (*state.layers, *state.transforms)} if linear else {}
    known |= {name: len(shape) for name, shape in shapes.items()}
    for name, layer in state.layers.items():
        layers[name], error = _layer(layer, can, shapes.get(name), _count_in_config(layer, state))
        layers[name] = replace(layers[name], dims=known.get(name, layer.dims))
        if error is not None:
            errors[name] = error
    turned = butterflies(state).items()
    transforms = {name: replace(layer, dims=known.get(name, layer.dims)) for name, layer in turned}
    return replace(state, layers=layers, transforms=transforms), errors


def _layer(layer: LayerState, can: Format, shape: Sequence[int] | None, count: int) -> tuple[LayerState, float | None]:
    kind = kind_of(layer)
    if layer.conv_reversed:
        layer = layer.for_weight(shape or (1, 1))
    layer, error = layer.plain(), None
    if not can.scale and layer.magnitude is not None and bool((layer.magnitude == 1).all()):
        layer = replace(layer, magnitude=None)
    if kind not in can.lossless:
        exact = not any("neumann" in known for known in can.lossless)
        layer, error = _approximated(layer, exact, terms=5 if can.conv_reversed else layer.spec.terms)
    if can.conv_reversed:
        if len(shape or (1, 1)) > 2:
            layer = replace(layer, rotations={part: -v for part, v in layer.rotations.items()})
        layer = replace(layer, conv_reversed=True)
    if layer.spec.shared and not can.shared:
        if shape is not None:
            features = shape[0] if layer.spec.side == "out" else int(torch.Size(shape[1:]).numel())
            layer.runs_on(features)
            count = -(-features // layer.block_size())
        repeated = {"": layer.rotations[""].repeat(count, 1)}
        layer = replace(layer, rotations=repeated, spec=replace(layer.spec, shared=False))
    if can.scale and layer.magnitude is None:
        layer = replace(layer, magnitude=torch.ones((shape or (0,))[0]))
    return layer, error


def _approximated(layer: LayerState, exact: bool, terms: int) -> tuple[LayerState, float]:
    """The nearest layer with the exact map, or with the current series, and how far its rotation is off."""
    R = replace(layer, rotations={"": layer.rotations[""].double()}).rotation()
    if exact:
        U, _, V = torch.linalg.svd(R)
        try:
            found = replace(layer, rotations={"": pack(inverse_cayley(U @ V))}, spec=replace(layer.spec, map="exact"))
        except torch.linalg.LinAlgError as fault:
            got = "a rotation by pi beside it"
            raise UnsupportedLayerError("a series with no exact map near it", got=got, do=DENSE) from fault
    else:
        vector = layer.rotations[""].double()
        spec = replace(layer.spec, map="neumann", terms=terms)
        found = replace(layer, rotations={"": -vector if layer.spec.exact else vector}, spec=spec)
    error = float(torch.linalg.matrix_norm(found.rotation() - R, ord=2).max())
    return replace(found, rotations={"": found.rotations[""].float()}), error


def butterflies(state: AdapterState) -> dict[str, Butterfly]:
    """The layers that are butterflies, after :func:`convert` has let nothing else through."""
    return {name: layer for name, layer in state.transforms.items() if isinstance(layer, Butterfly)}
